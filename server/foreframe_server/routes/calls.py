"""What every route that computes reads of a request besides its fields: headers, body, deadlines. Knows no pixels."""

import time
from dataclasses import dataclass, fields, replace

from starlette.requests import Request

from foreframe_server.access import paying_caller
from foreframe_server.calls import (
    Call,
    CallOptions,
    HoldTimings,
    ReadTimings,
    ScoreTimings,
    StageTimings,
    Timings,
)
from foreframe_server.codec import (
    BODY_MEDIA,
    DOCUMENT_MEDIA,
    Document,
    Form,
    FormReader,
    Media,
    read_accept,
    read_content_type,
    read_document,
    read_form,
)
from foreframe_server.disconnects import has_left
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.routes.host import host_of
from foreframe_server.schemas import MAX_DEADLINE_MS

_DEADLINE_HEADER = "x-deadline-ms"
_NO_STAGES = frozenset({"step_batch_mean", "cold"})
_STAGES = {
    record: tuple(field.name for field in fields(record) if field.name not in _NO_STAGES)
    for record in (Timings, ReadTimings, ScoreTimings, HoldTimings)
}


@dataclass(frozen=True, slots=True)
class Received:
    """A whole body, how it is written, how the reply is wanted, and when it was there."""

    body: memoryview | Form
    media: Media
    accepted: Media
    at_s: float

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the body was there."""
        return (time.monotonic() - self.at_s) * 1000


async def receive(request: Request, offered: tuple[Media, ...] = DOCUMENT_MEDIA) -> Received:
    """Check the headers, then read the body. Raises UnsupportedMedia, InvalidRequest, or what the body's bounds do."""
    accepted = read_accept(request.headers.get("accept"), offered)
    content_type = request.headers.get("content-type")
    media = read_content_type(content_type, BODY_MEDIA)
    _header_deadline_s(request)
    if media is Media.MULTIPART:
        return Received(await _receive_form(request, content_type or ""), media, accepted, time.monotonic())
    return Received(await _receive_body(request), media, accepted, time.monotonic())


async def _receive_body(request: Request) -> memoryview:
    body = host_of(request).bodies.open(request.headers.get("content-length"))
    async for piece in request.stream():
        body.add(piece)
    return body.close()


async def _receive_form(request: Request, content_type: str) -> Form:
    reader, body = FormReader(content_type), host_of(request).bodies.open(request.headers.get("content-length"))
    async for piece in request.stream():
        reader.feed(piece)
        body.add(piece)
    return reader.close(body.close())


def read_received(received: Received, *, max_values: int) -> Document:
    """Read a body into its document; may take long. Raises InvalidRequest."""
    if isinstance(received.body, Form):
        return read_form(received.body, max_values=max_values)
    return read_document(received.body, received.media, max_values=max_values)


def receive_ms(request: Request, received: Received) -> float:
    """Return how long the body took from the request's first byte."""
    return (received.at_s - request.state.received_s) * 1000


def build_call(request_id: str, received_s: float, options: CallOptions) -> Call:
    """Make the current caller's call of what was received at a time; its budget counts from then.

    Raises Unauthorized or QuotaExceeded.
    """
    caller = paying_caller()
    return Call(
        request_id=request_id,
        received_s=received_s,
        deadline_s=None if options.deadline_ms is None else received_s + options.deadline_ms / 1000,
        on_deadline=options.on_deadline,
        cache=options.cache,
        priority=options.priority,
        key=caller.key_id,
        tenant=caller.tenant,
    )


def call_of(request: Request, options: CallOptions) -> Call:
    """Make the call of an HTTP request; the earlier of its own deadline and the header's counts.

    Raises as `build_call`.
    """
    call = build_call(request.state.request_id, request.state.received_s, options)
    deadlines = [deadline for deadline in (call.deadline_s, _header_deadline_s(request)) if deadline is not None]

    async def is_disconnected() -> bool:
        return has_left(request.receive())

    return replace(call, deadline_s=min(deadlines, default=None), is_disconnected=is_disconnected)


def _header_deadline_s(request: Request) -> float | None:
    text = request.headers.get(_DEADLINE_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) <= MAX_DEADLINE_MS):
        expected = f"milliseconds, 0..{MAX_DEADLINE_MS}"
        reason = Reason("", "X-Deadline-Ms is no budget", expected)
        raise InvalidRequest("X-Deadline-Ms is not valid.", reasons=[reason])
    return request.state.received_s + int(text) / 1000


def stage_times(timings: StageTimings) -> dict[str, float]:
    """Return the milliseconds of every stage, rounded to a microsecond."""
    return {name: round(getattr(timings, name), 3) for name in _STAGES[type(timings)]}


def timing_headers(timings: StageTimings) -> dict[str, str]:
    """Write every stage as `Server-Timing`, beside what keeps replies out of caches."""
    stages = ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in stage_times(timings).items())
    return {"Server-Timing": stages, "Cache-Control": "no-store", "Vary": "Accept"}
