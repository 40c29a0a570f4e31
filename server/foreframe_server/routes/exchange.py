"""One exchange: receive, decode, answer, encode, every stage timed. The same for every route that asks a model."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from foreframe_engines import Contract
from foreframe_server.calls import Call, CallOptions, ReadTimings, ScoreTimings, Timings
from foreframe_server.codec import DOCUMENT_MEDIA, Bounds, EncodedReply, Media, Recall
from foreframe_server.metrics import WIRE_STAGES
from foreframe_server.routes.calls import build_call, receive, receive_ms, timing_headers
from foreframe_server.routes.host import host_of


class _Asked(Protocol):
    @property
    def options(self) -> CallOptions: ...


class _Answered(Protocol):
    @property
    def timings(self) -> Timings | ReadTimings | ScoreTimings: ...


_A = TypeVar("_A", bound=_Asked)
_R = TypeVar("_R", bound=_Answered)


@dataclass(frozen=True, slots=True)
class Opened(Generic[_A]):
    """What a request asks for, the call it makes, and what reading it took."""

    asked: _A
    call: Call
    receive_ms: float
    decode_ms: float


async def exchange(
    request: Request,
    contract: Contract,
    decode: Callable[[bytes, Media, Media, Contract, Bounds, Recall], _A],
    answer: Callable[[_A, Call], Awaitable[_R]],
    encode: Callable[[_A, _R, Contract, Call], EncodedReply],
    offered: tuple[Media, ...] = DOCUMENT_MEDIA,
) -> Response:
    """Turn a request into its reply. Raises what its parts raise."""
    opened = await open_exchange(request, contract, decode, offered)
    answered = await answer(opened.asked, opened.call)
    reply = await close_exchange(request, contract, opened, answered, encode)
    headers = {**reply.headers, **timing_headers(answered.timings)}
    return Response(reply.body, headers=headers, media_type=reply.media.value)


async def open_exchange(
    request: Request,
    contract: Contract,
    decode: Callable[[bytes, Media, Media, Contract, Bounds, Recall], _A],
    offered: tuple[Media, ...],
) -> Opened[_A]:
    """Receive a request and read it in the codec's threads. Raises what its parts raise."""
    host = host_of(request)
    received = await receive(request, offered)
    recall = host.observations.get
    asked = await host.compute(decode, received.body, received.media, received.accepted, contract, host.bounds, recall)
    decode_ms = received.elapsed_ms
    return Opened(asked, build_call(request, asked.options), receive_ms(request, received), decode_ms)


async def close_exchange(
    request: Request,
    contract: Contract,
    opened: Opened[_A],
    answered: _R,
    encode: Callable[[_A, _R, Contract, Call], EncodedReply],
) -> EncodedReply:
    """Write an answer in the codec's threads and record its stages. Completes `answered.timings`."""
    host, timings = host_of(request), answered.timings
    timings.receive, timings.decode = opened.receive_ms, opened.decode_ms
    reply = await host.compute(encode, opened.asked, answered, contract, opened.call)
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    host.metrics.observe_stages(timings, WIRE_STAGES)
    return reply
