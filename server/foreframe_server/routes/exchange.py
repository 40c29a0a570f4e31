"""One exchange: receive, decode, answer, encode, every stage timed. The same for every route that asks a model."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

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


async def exchange(
    request: Request,
    contract: Contract,
    decode: Callable[[bytes, Media, Media, Contract, Bounds, Recall], _A],
    answer: Callable[[_A, Call], Awaitable[_R]],
    encode: Callable[[_A, _R, Contract, Call], EncodedReply],
    offered: tuple[Media, ...] = DOCUMENT_MEDIA,
) -> Response:
    """Turn a request into its reply; reading and writing run in the codec's threads. Raises what its parts raise."""
    host = host_of(request)
    received = await receive(request, offered)
    recall = host.observations.get
    asked = await host.compute(decode, received.body, received.media, received.accepted, contract, host.bounds, recall)
    decode_ms = received.elapsed_ms
    call = build_call(request, asked.options)
    answered = await answer(asked, call)
    timings = answered.timings
    timings.receive, timings.decode = receive_ms(request, received), decode_ms
    reply = await host.compute(encode, asked, answered, contract, call)
    timings.total = (time.monotonic() - request.state.received_s) * 1000
    host.metrics.observe_stages(timings, WIRE_STAGES)
    return Response(reply.body, headers={**reply.headers, **timing_headers(timings)}, media_type=reply.media.value)
