"""The messages of one websocket: taken in order, each answered in a task of its own, counted and logged.

Knows ids, bounds and ends, and not how a kind of request is answered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from starlette.websockets import WebSocketDisconnect

from foreframe_server.codec import Document, Media, Message, read_message, validate, write_document, write_message
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import Cancelled, Gone, InvalidRequest, Overloaded, Reason, ServiceError
from foreframe_server.problems import problem_document, unexpected_error
from foreframe_server.realtime_schemas import CancelRequest, MessageKind, PingRequest
from foreframe_server.routes.host import Host
from foreframe_server.routes.line import Line, is_server_leaving

ROUTE: Final = "/v1/realtime"
_SMALL_BYTES = 4096
"""What is read in less time than it takes to hand it to a thread."""

_log = structlog.get_logger("foreframe.requests")


@dataclass(frozen=True, slots=True, eq=False)
class Incoming:
    """A message and when it was there, in seconds of `time.monotonic`."""

    message: Message
    received_s: float

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since it was there."""
        return (time.monotonic() - self.received_s) * 1000


Tell = Callable[[str, bytes, Mapping[str, float] | None], Awaitable[None]]
"""Sends an answer: its name, its body in msgpack and, with the last one, what each stage took."""

Answering = Callable[[Incoming, Tell], Awaitable[None]]
"""Answers a message. Raises ServiceError when that fails."""


class Conversation:
    """What is said on one line.

    answer: answers every kind but `cancel` and `ping`. name: the connection's, in the log.
    """

    def __init__(self, line: Line, host: Host, answer: Answering, name: str) -> None:
        self._line = line
        self._host = host
        self._name = name
        self._answer = answer
        self._ongoing: dict[str, asyncio.Task[None]] = {}
        self._received_s = time.monotonic()
        self._is_over = False

    async def hold(self, greet: Callable[[], Document]) -> None:
        """Greet and answer until either side ends it; then nothing of it is left. greet: makes the first message."""
        self._reading = asyncio.create_task(self._read(greet))
        try:
            await asyncio.wait({self._reading})
            if is_server_leaving(self._reading) and self._ongoing:
                await asyncio.wait(set(self._ongoing.values()))
        finally:
            await self._end()
        error = None if self._reading.cancelled() else self._reading.exception()
        if isinstance(error, ServiceError):
            self._host.metrics.count_request(ROUTE, error.code, time.monotonic() - self._received_s)
            await self._line.close(error)
        elif error is not None and not isinstance(error, WebSocketDisconnect):
            raise error

    async def _end(self) -> None:
        self._is_over = True
        tasks = {self._reading, *self._ongoing.values()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _read(self, greet: Callable[[], Document]) -> None:
        """Take message after message. Raises WebSocketDisconnect, or ServiceError for what cannot be answered."""
        await self._line.write(write_message("contract", self._name, write_document(greet(), Media.MSGPACK)))
        while True:
            data = await self._line.receive()
            self._received_s = time.monotonic()
            await self._take(Incoming(await self._decode(data), self._received_s))

    async def _decode(self, data: bytes) -> Message:
        max_values = self._host.bounds.max_json_values
        if len(data) <= _SMALL_BYTES:
            return read_message(data, max_values=max_values)
        return await asyncio.to_thread(read_message, data, max_values=max_values)

    async def _take(self, incoming: Incoming) -> None:
        message = incoming.message
        refusal = self._refusal(message)
        if refusal is not None:
            await self._attend(incoming, partial(_refuse, refusal))
        elif message.kind is MessageKind.PING:
            await self._attend(incoming, _pong)
        elif message.kind is MessageKind.CANCEL:
            await self._attend(incoming, self._cancel)
        else:
            task = asyncio.create_task(self._attend(incoming, self._answer))
            self._ongoing[message.request_id] = task
            task.add_done_callback(lambda _: self._ongoing.pop(message.request_id))
            await asyncio.sleep(0)  # begun before what comes next may cancel it: so it is counted

    def _refusal(self, message: Message) -> ServiceError | None:
        """Say why a message cannot be answered, if so."""
        if message.fault is not None or message.kind in (MessageKind.PING, MessageKind.CANCEL):
            return message.fault
        if message.request_id in self._ongoing:
            reason = Reason("/request_id", "is in flight already", "an id of its own for every request")
            return InvalidRequest("The request cannot be told from another.", reasons=[reason])
        limit = self._host.settings.realtime.max_in_flight
        if len(self._ongoing) >= limit:
            return Overloaded(f"This connection may have {limit} unanswered requests.")
        return None

    async def _attend(self, incoming: Incoming, answer: Answering) -> None:
        """See to one message: answer it or say why not, count it, log it."""
        code = ClientLeft.code
        try:
            code = await self._answer_or_refuse(incoming, answer)
        except WebSocketDisconnect:
            self._reading.cancel()  # nobody hears the answers to what else may come
        except asyncio.CancelledError:
            code = code if self._is_over else Cancelled.code
            raise
        finally:
            self._count(incoming, code)

    async def _answer_or_refuse(self, incoming: Incoming, answer: Answering) -> str:
        try:
            await answer(incoming, partial(self._tell, incoming))
        except ServiceError as error:
            await self._tell_problem(incoming, error)
            return error.code
        except WebSocketDisconnect:
            raise
        except Exception:  # noqa: BLE001 - the border of a message: logged, counted, answered
            _log.exception("message failed", request_id=incoming.message.request_id, connection=self._name)
            await self._tell_problem(incoming, unexpected_error())
            return ServiceError.code
        return "ok"

    async def _cancel(self, incoming: Incoming, _tell: Tell) -> None:
        """End the request of the same id. Raises Gone when there is none."""
        validate(CancelRequest, incoming.message.fields)
        task = self._ongoing.get(incoming.message.request_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if task.cancelled():
                await self._tell_problem(incoming, Cancelled("The request was cancelled."))
                return
        raise Gone("No request of this id is in flight: it was answered, or never was.")

    async def _tell(
        self, incoming: Incoming, name: str, body: bytes, server_timing: Mapping[str, float] | None
    ) -> None:
        await self._line.write(write_message(name, incoming.message.request_id, body, server_timing))

    async def _tell_problem(self, incoming: Incoming, error: ServiceError) -> None:
        problem = write_document(problem_document(error, incoming.message.request_id), Media.MSGPACK)
        await self._tell(incoming, "error", problem, _total(incoming))

    def _count(self, incoming: Incoming, code: str) -> None:
        self._host.metrics.count_request(ROUTE, code, incoming.elapsed_ms / 1000)
        _log.info(
            "message",
            request_id=incoming.message.request_id,
            connection=self._name,
            kind=incoming.message.kind,
            code=code,
            duration_ms=round(incoming.elapsed_ms, 3),
        )


async def _refuse(error: ServiceError, _incoming: Incoming, _tell: Tell) -> None:
    raise error


async def _pong(incoming: Incoming, tell: Tell) -> None:
    payload = validate(PingRequest, incoming.message.fields).payload
    await tell("pong", write_document({"payload": payload}, Media.MSGPACK), _total(incoming))


def _total(incoming: Incoming) -> Mapping[str, float]:
    return {"total": round(incoming.elapsed_ms, 3)}
