"""One exchange: read, answer, write, every stage timed. The same for every kind of request and at every door.

Knows HTTP requests, and what a door has to bring that has none.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from foreframe_engines import Contract
from foreframe_server.calls import Call, CallOptions, StageTimings
from foreframe_server.codec import DOCUMENT_MEDIA, Bounds, Document, EncodedReply, Media, Recall
from foreframe_server.metrics import WIRE_STAGES
from foreframe_server.routes.calls import (
    Received,
    build_call,
    call_of,
    read_received,
    receive,
    receive_ms,
    timing_headers,
)
from foreframe_server.routes.host import Host


class _Asked(Protocol):
    @property
    def options(self) -> CallOptions: ...


class _Answered(Protocol):
    @property
    def timings(self) -> StageTimings: ...


AskedT = TypeVar("AskedT", bound=_Asked)
AnsweredT = TypeVar("AnsweredT", bound=_Answered)


@dataclass(frozen=True, slots=True, eq=False)
class Exchange(Generic[AskedT, AnsweredT]):
    """How one kind of request is read, answered and written. Reading and writing take place in the codec's threads."""

    host: Host
    contract: Contract
    decode: Callable[[Document, Media, Contract, Bounds, Recall], AskedT]
    answer: Callable[[AskedT, Call], Awaitable[AnsweredT]]
    encode: Callable[[AskedT, AnsweredT, Contract, Call], EncodedReply]

    def read(self, document: Document, accepted: Media) -> AskedT:
        """Read a document. May take long. Raises what `decode` raises."""
        return self.decode(document, accepted, self.contract, self.host.bounds, self.host.observations.get)


@dataclass(frozen=True, slots=True)
class Opened(Generic[AskedT]):
    """What a request asks for, the call it makes, and what reading it took."""

    asked: AskedT
    call: Call
    receive_ms: float
    decode_ms: float


async def respond(
    request: Request, exchange: Exchange[AskedT, AnsweredT], offered: tuple[Media, ...] = DOCUMENT_MEDIA
) -> Response:
    """Turn a request into its reply. Raises what the exchange's parts raise."""
    opened = await open_request(request, exchange, offered)
    answered = await exchange.answer(opened.asked, opened.call)
    reply = await close_exchange(exchange, opened, answered)
    headers = {**reply.headers, **timing_headers(answered.timings)}
    return Response(reply.body, headers=headers, media_type=reply.media.value)


async def open_request(
    request: Request, exchange: Exchange[AskedT, AnsweredT], offered: tuple[Media, ...]
) -> Opened[AskedT]:
    """Receive a request and read it. Raises what its parts raise."""
    received = await receive(request, offered)
    asked = await exchange.host.compute(_read_body, exchange, received)
    decode_ms = received.elapsed_ms
    return Opened(asked, call_of(request, asked.options), receive_ms(request, received), decode_ms)


def _read_body(exchange: Exchange[AskedT, AnsweredT], received: Received) -> AskedT:
    document = read_received(received, max_values=exchange.host.bounds.max_json_values)
    return exchange.read(document, received.accepted)


async def open_fields(
    exchange: Exchange[AskedT, AnsweredT], fields: Document, request_id: str, received_s: float
) -> Opened[AskedT]:
    """Read a document that a door without HTTP received. Raises what its parts raise."""
    asked = await exchange.host.compute(exchange.read, fields, Media.MSGPACK)
    decode_ms = (time.monotonic() - received_s) * 1000
    return Opened(asked, build_call(request_id, received_s, asked.options), 0.0, decode_ms)


async def close_exchange(
    exchange: Exchange[AskedT, AnsweredT], opened: Opened[AskedT], answered: AnsweredT
) -> EncodedReply:
    """Write an answer and record its stages. Completes `answered.timings`."""
    host, timings, call = exchange.host, answered.timings, opened.call
    timings.receive, timings.decode = opened.receive_ms, opened.decode_ms
    reply = await host.compute(exchange.encode, opened.asked, answered, exchange.contract, call)
    timings.total = (time.monotonic() - call.received_s) * 1000
    host.metrics.observe_stages(timings, WIRE_STAGES)
    return reply
