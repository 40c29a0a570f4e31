"""The websocket of openpi's clients: the contract first, then one reply a request. Knows neither pixels nor engines.

Clients of this kind send one request and read one reply, so a second request says that nobody waits for the first:
that one ends, and its reply is never sent.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import structlog
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from foreframe_engines import Contract
from foreframe_server.access import allow
from foreframe_server.calls import Answer, Call
from foreframe_server.codec import Document, EncodedReply, Media, take_fields, validate, write_document
from foreframe_server.codec.openpi import (
    AskedStep,
    History,
    decode_step,
    encode_refusal,
    encode_reset,
    encode_step,
    read_policy_message,
)
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import ServiceError, Superseded
from foreframe_server.hosting import HostedModel
from foreframe_server.keys import Scope
from foreframe_server.policy_schemas import Endpoint, PolicyEnvelope
from foreframe_server.problems import unexpected_error
from foreframe_server.routes.exchange import Exchange, Offer, Opened, close_exchange, open_fields
from foreframe_server.routes.host import Host, host_of
from foreframe_server.routes.line import Line, is_server_leaving
from foreframe_server.routes.realtime import greet
from foreframe_server.schemas import WireRequest
from foreframe_server.service import PredictionService

PATHS: Final = ("/", "/openpi/policy", "/v1/realtime/robot/openpi")
"""openpi's clients know no path, SGLang's and vLLM-Omni's know one each."""

router = APIRouter(dependencies=[allow(Scope.PREDICT)])
_log = structlog.get_logger("foreframe.requests")

_Answering: TypeAlias = Callable[[], Awaitable[bytes]]
"""Answers a request that was read. Raises ServiceError."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A message and when it was there, in seconds of `time.monotonic`."""

    data: bytes
    at_s: float

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self.at_s) * 1000


_Newer: TypeAlias = asyncio.Task[_Arrived]
"""Ends when a robot sends its next message, or leaves."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A message that was read, and what answers or refuses it."""

    request_id: str
    answer: _Answering


async def talk(websocket: WebSocket) -> None:
    """Send the model's contract, then answer requests until either side ends it."""
    host = host_of(websocket)
    await websocket.accept()
    line = Line(websocket, host.settings.http.max_message_bytes)
    with host.metrics.connected():
        await PolicyConversation(line, host, websocket.scope["route"].path, websocket.state.request_id).hold()


for path in PATHS:
    router.add_api_websocket_route(path, talk)


class PolicyConversation:
    """What is said on one line, in openpi's way. name: the connection's, in the log."""

    def __init__(self, line: Line, host: Host, route: str, name: str) -> None:
        self._line = line
        self._host = host
        self._route = route
        self._name = name
        self._history: History | None = None
        self._seen_by: Contract | None = None
        self._loan = host.models.loan()
        self._session_id: str | None = None
        self._prev_total_ms: float | None = None

    async def hold(self) -> None:
        """Greet and answer until either side ends it; then nothing of it is left."""
        opened_s = time.monotonic()
        try:
            await self._line.write(write_document(greet(self._host), Media.MSGPACK))
            await self._listen()
        except WebSocketDisconnect:
            return
        except ServiceError as error:
            self._host.metrics.count_request(self._route, error.code, time.monotonic() - opened_s)
            await self._line.close(error)
        finally:
            self._loan.end()

    async def _listen(self) -> None:
        """Take message after message. Raises WebSocketDisconnect, or ServiceError for what is no message."""
        receiving = asyncio.create_task(self._receive())
        try:
            while True:
                arrived = await receiving
                receiving = asyncio.create_task(self._receive())
                await self._attend(arrived, receiving)
        finally:
            await _end(receiving)

    async def _receive(self) -> _Arrived:
        return _Arrived(await self._line.receive(), time.monotonic())

    async def _attend(self, arrived: _Arrived, newer: _Newer) -> None:
        """See to one message: answer it, unless another one comes first; count it, log it."""
        # What was seen is kept in the order of its coming, so reading it is not cut short by what comes next.
        request = await self._read(arrived)
        answering = asyncio.create_task(self._answer(request, arrived, newer))
        code = ClientLeft.code
        try:
            await asyncio.wait({answering, newer}, return_when=asyncio.FIRST_COMPLETED)
            if is_server_leaving(newer):
                await asyncio.wait({answering})
            code = answering.result() if answering.done() else _reason_to_drop(newer)
        finally:
            await _end(answering)
            self._count(request.request_id, code, arrived)

    async def _read(self, arrived: _Arrived) -> _Request:
        """Read a message. Raises InvalidRequest for what is none."""
        max_values = self._host.bounds.max_json_values
        document = await self._host.compute(read_policy_message, arrived.data, max_values=max_values)
        request_id = secrets.token_hex(8)
        try:
            envelope = take_fields(PolicyEnvelope, document)
            request_id = envelope.request_id or request_id
            return _Request(request_id, await self._prepare(envelope, document, request_id, arrived.at_s))
        except ServiceError as error:
            return _Request(request_id, partial(_refuse, error))

    async def _prepare(
        self, envelope: PolicyEnvelope, document: Document, request_id: str, received_s: float
    ) -> _Answering:
        """Keep what a request shows, and return what answers it. Raises ServiceError."""
        if envelope.session_id not in (None, self._session_id):
            self._session_id, self._history = envelope.session_id, None
        if envelope.endpoint is Endpoint.RESET:
            validate(WireRequest, document)
            self._history = None
            return partial(self._confirm_reset, request_id, received_s)
        opened = await self._open(document, request_id, received_s)
        self._history, self._seen_by = opened.asked.history, opened.exchange.contract
        return partial(self._predict, opened)

    async def _open(self, document: Document, request_id: str, received_s: float) -> Opened[AskedStep, Answer]:
        """Read an observation, and hold the model that it is for until the answer is there."""
        offer = Offer("predict", self._build)
        return await open_fields(self._host, offer, document, request_id, received_s, self._loan)

    def _build(self, host: Host, model: HostedModel) -> Exchange[AskedStep, Answer]:
        """Put together how a step is read; what was seen in the words of another contract is forgotten."""
        history = self._history if model.contract is self._seen_by else None
        return _policy_exchange(host, model, history, self._prev_total_ms)

    async def _predict(self, opened: Opened[AskedStep, Answer]) -> bytes:
        try:
            answer = await opened.exchange.answer(opened.asked, opened.call)
            return (await close_exchange(opened, answer)).body
        finally:
            self._loan.end()

    async def _confirm_reset(self, request_id: str, received_s: float) -> bytes:
        return encode_reset(request_id, received_s, self._prev_total_ms)

    async def _answer(self, request: _Request, arrived: _Arrived, newer: _Newer) -> str:
        """Answer or refuse a request, unless another one is there by then. Returns what became of it."""
        reply, code = await self._write_reply(request)
        if newer.done() and not is_server_leaving(newer):
            return _reason_to_drop(newer)
        await self._line.write(reply)
        self._prev_total_ms = arrived.elapsed_ms
        return code

    async def _write_reply(self, request: _Request) -> tuple[bytes | str, str]:
        """Write a reply, text where it is a refusal, and return its code beside it."""
        try:
            return await request.answer(), "ok"
        except ServiceError as error:
            return encode_refusal(error), error.code
        except Exception:  # noqa: BLE001 - the border of a message: logged, counted, answered
            _log.exception("message failed", request_id=request.request_id, connection=self._name)
            return encode_refusal(unexpected_error()), ServiceError.code

    def _count(self, request_id: str, code: str, arrived: _Arrived) -> None:
        duration_ms = arrived.elapsed_ms
        self._host.metrics.count_request(self._route, code, duration_ms / 1000)
        _log.info("message", request_id=request_id, connection=self._name, code=code, duration_ms=round(duration_ms, 3))


def _policy_exchange(
    host: Host, model: HostedModel, history: History | None, prev_total_ms: float | None
) -> Exchange[AskedStep, Answer]:
    """Put together how a step is read, answered and written. Raises what `open_service` raises."""
    service = model.open_service()
    return Exchange(
        host,
        model,
        partial(decode_step, history),
        lambda step, call: service.predict(step.asked.query, call),
        partial(_encode, service, prev_total_ms),
    )


def _encode(
    service: PredictionService,
    prev_total_ms: float | None,
    step: AskedStep,
    answer: Answer,
    contract: Contract,
    call: Call,
) -> EncodedReply:
    reply = encode_step(prev_total_ms, step, answer, contract, call)
    service.observe_reply((answer.timings.reduce + answer.timings.respond) / 1000)
    return reply


async def _refuse(error: ServiceError) -> bytes:
    raise error


def _reason_to_drop(newer: _Newer) -> str:
    return Superseded.code if newer.exception() is None else ClientLeft.code


async def _end(task: asyncio.Task[object]) -> None:
    """Cancel a task and wait until it has ended; how it ended was seen to, or concerns nobody any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
