"""Records exchanges in a thread of its own: what it cannot keep up with is dropped and counted, never waited for.

Knows folders, bounds and names of files, and not what is in them.
"""

import contextlib
import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import structlog

from foreframe_engines import Contract, Query
from foreframe_server.calls import Answer, Call
from foreframe_server.metrics import Metrics
from foreframe_server.recording.log import Log
from foreframe_server.recording.streams import Exchanged, StreamLog

MAX_OPEN_FILES = 32
_UNNAMED = "unnamed"

_log = structlog.get_logger(__name__)


class Limits(Protocol):
    """How much may wait to be written, and how much is written in all, in bytes."""

    @property
    def max_pending_bytes(self) -> int:
        """How much may wait."""
        ...

    @property
    def max_bytes(self) -> int:
        """How much is written in all."""
        ...


@dataclass(frozen=True, slots=True)
class _StreamKey:
    """Streams of different callers are apart, whatever they call them."""

    caller: str
    stream_id: str | None

    @property
    def file_stem(self) -> str:
        """A name that says which stream it is and that no other stream has."""
        slug = re.sub(r"[^A-Za-z0-9_-]+", "_", self.stream_id or _UNNAMED)[:48]
        digest = hashlib.sha256(f"{len(self.caller)}:{self.caller}{self.stream_id}".encode()).hexdigest()[:8]
        return f"{slug}-{digest}"


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    stream: _StreamKey
    exchanged: Exchanged


class Recorder:
    """Writes a file a stream into a folder. Start it, and close it when nothing more is offered.

    Raises OSError when the folder cannot be made. clock: wall clock, in nanoseconds.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        metrics: Metrics,
        limits: Limits,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._contract, self._metrics, self._limits = folder, contract, metrics, limits
        self._clock = clock
        self._queue: SimpleQueue[_Pending | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._written_bytes = 0
        self._streams: OrderedDict[_StreamKey, StreamLog] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="foreframe-recorder", daemon=True)

    def start(self) -> None:
        """Start to write what is offered."""
        self._thread.start()

    def offer(self, query: Query, call: Call, answer: Answer) -> None:
        """Have an exchange written soon, or drop it. Never waits."""
        received_ns = self._clock() - round((time.monotonic() - call.received_s) * 1e9)
        exchanged = Exchanged(replace(query, context_latents=None), answer, call.request_id, received_ns)
        with self._lock:
            if self._pending_bytes + exchanged.num_bytes > self._limits.max_pending_bytes:
                self._metrics.count_recording("dropped")
                return
            self._pending_bytes += exchanged.num_bytes
        self._queue.put(_Pending(_StreamKey(call.key, query.stream_id), exchanged))

    def close(self) -> None:
        """Write what waits, then close every file."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (pending := self._queue.get()) is not None:
            self._metrics.count_recording(self._write_or_say_why(pending))
            with self._lock:
                self._pending_bytes -= pending.exchanged.num_bytes
        while self._streams:
            self._close(next(iter(self._streams)))

    def _write_or_say_why(self, pending: _Pending) -> str:
        open_bytes = sum(stream.num_bytes for stream in self._streams.values())
        if self._written_bytes + open_bytes >= self._limits.max_bytes:
            return "full"
        try:
            self._stream(pending).write(pending.exchanged)
        except Exception:  # noqa: BLE001 - the border of the thread: logged, counted, and the next one is tried
            _log.exception("an exchange could not be recorded", request_id=pending.exchanged.request_id)
            self._close(pending.stream)
            return "failed"
        return "written"

    def _stream(self, pending: _Pending) -> StreamLog:
        if pending.stream not in self._streams:
            while len(self._streams) >= MAX_OPEN_FILES:
                self._close(next(iter(self._streams)))
            self._streams[pending.stream] = self._open(pending)
        self._streams.move_to_end(pending.stream)
        return self._streams[pending.stream]

    def _open(self, pending: _Pending) -> StreamLog:
        contract, received_s = self._contract, pending.exchanged.received_ns // 10**9
        facts = {
            "model": contract.model,
            "revision": contract.revision,
            "fps": str(contract.fps),
            "camera": contract.camera.name,
            "stream_id": pending.stream.stream_id or "",
        }
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(received_s))
        stem = f"{stamp}-{pending.stream.file_stem}"
        return StreamLog(Log(_free_path(self._folder, stem), facts), contract)

    def _close(self, key: _StreamKey) -> None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
            self._written_bytes += stream.num_bytes


def _free_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.mcap", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.mcap"
    return path
