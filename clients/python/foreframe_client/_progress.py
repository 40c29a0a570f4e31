"""A streamed answer without any I/O: pieces of its body become progress, and at its end the reply. Knows no connection.

The events are server-sent ones (WHATWG HTML, 9.2), each with one line of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Optional

import numpy as np

from foreframe_client._calls import Outcome, Send
from foreframe_client._errors import TimedOut, TransportError
from foreframe_client._fields import Fields
from foreframe_client._types import Progress
from foreframe_client._wire import JSON, Reply, fields_of, stack

EVENT_STREAM = "text/event-stream"
_PROBLEM = "application/problem+json"


def streamed(step: Send) -> Send:
    """Return the same question, asked for an answer that comes event by event."""
    return replace(step, request=replace(step.request, headers={**step.request.headers, "accept": EVENT_STREAM}))


@dataclass(frozen=True)
class Event:
    """One event of a stream."""

    name: str
    data: bytes


class EventReader:
    """Cuts the pieces of a stream into events, wherever the pieces begin and end."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._name = ""
        self._data: List[bytes] = []

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take the next piece; yield the events that end in it."""
        first, *others = piece.split(b"\n")
        self._line += first
        for other in others:
            line, self._line = bytes(self._line).rstrip(b"\r"), bytearray(other)
            if line:
                self._take(line)
            elif self._data:
                yield self._end()

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"event":
            self._name = _text(value).decode("ascii", "replace")
        elif field == b"data":
            self._data.append(_text(value))

    def _end(self) -> Event:
        event = Event(self._name or "message", b"\n".join(self._data))
        self._name, self._data = "", []
        return event


def _text(value: bytes) -> bytes:
    return value[1:] if value[:1] == b" " else value


class Hearing:
    """One streamed answer as it comes. `outcome` is what an ordinary request would have met, None before that.

    patience_s: how long no event may come; comments, which keep the connection alive, do not count.
    """

    def __init__(self, patience_s: float, clock: Callable[[], float]) -> None:
        self.outcome: Outcome = None
        self._patience_s = patience_s
        self._clock = clock
        self._since_s = clock()
        self._reader = EventReader()

    def feed(self, piece: bytes) -> Iterator[Progress]:
        """Take the next piece of the body; yield what it tells. Raises ProtocolError."""
        has_news = False
        for event in self._reader.feed(piece):
            has_news = True
            progress = self._take(event)
            if progress is not None:
                yield progress
        if has_news:
            self._since_s = self._clock()
        elif self._clock() - self._since_s > self._patience_s:
            self.fail(TimedOut("the server did not answer in time (only signs of life came)"))

    def fail(self, failure: TransportError) -> None:
        """End without an answer, unless one has come."""
        if self.outcome is None:
            self.outcome = failure

    def end(self) -> Outcome:
        """Return what came in the end."""
        self.fail(TransportError("the connection broke (the stream ended before its answer)"))
        return self.outcome

    def _take(self, event: Event) -> Optional[Progress]:
        if event.name == "done":
            self.outcome = Reply(200, {"content-type": JSON}, event.data)
        elif event.name == "error":
            self.outcome = Reply(_fields(event).integer("status"), {"content-type": _PROBLEM}, event.data)
        elif event.name in ("estimate", "update"):
            return _progress(_fields(event))
        return None


def _fields(event: Event) -> Fields:
    return fields_of(Reply(200, {"content-type": JSON}, event.data))


def _progress(event: Fields) -> Progress:
    frames = event.maps("frames")
    spread = event.numbers("spread_per_frame") if event.has("spread_per_frame") else []
    return Progress(
        frames=stack([frame.array("image", "uint8", 3) for frame in frames]),
        frame_indices=np.array([frame.integer("index") for frame in frames], np.int64),
        times_s=np.array([frame.number("t_s") for frame in frames], np.float64),
        num_members=event.integer("members") if event.has("members") else 0,
        spread_per_frame=np.array(spread, np.float64) if spread else None,
        standard_error=event.number("standard_error") if event.has("standard_error") else None,
        elapsed_ms=event.number("elapsed_ms"),
    )
