"""Keeps one process with an engine alive: replaces it when it is dead or silent, pauses in a crash loop."""

import random
import threading
import time
from collections.abc import Callable
from enum import StrEnum

import structlog

from foreframe_engines import EngineError, EngineLost
from foreframe_server.processes.channel import Message
from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.messages import Hello, Open, Ping
from foreframe_server.processes.patience import Patience
from foreframe_server.processes.process import EngineProcess, ProcessLost, Write
from foreframe_server.processes.restarts import Restarts

_log = structlog.get_logger(__name__)


class State(StrEnum):
    """What a process's place holds."""

    STARTING = "starting"
    LIVE = "live"
    DOWN = "down"
    BROKEN = "broken"
    CLOSED = "closed"


class ProcessKeeper:
    """One place for a process: `start`, then any number of `call`, then `kill` and `join`.

    changed: guards every keeper's state of a team, and is notified when one changes.
    """

    def __init__(
        self, asked: Open, limits: ProcessLimits, changed: threading.Condition, on_restart: Callable[[str], None]
    ) -> None:
        self.state = State.STARTING
        self.hello: Hello | None = None
        self.failure: EngineError | None = None
        """What the last start that failed said."""
        self.num_starts = 0
        self._asked, self._limits, self._changed, self._on_restart = asked, limits, changed, on_restart
        self._process: EngineProcess | None = None
        self._calling = threading.Lock()
        self._patience = Patience(limits)
        self._restarts = Restarts(limits, random.Random())  # noqa: S311 - it spreads restarts
        self._died_of: str | None = None
        self._thread = threading.Thread(target=self._keep, name="foreframe-process", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process's number; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def num_known(self) -> int:
        """How many arrays the process remembers."""
        process = self._process
        return 0 if process is None else process.num_known

    def start(self) -> None:
        """Begin to keep a process alive."""
        self._thread.start()

    def call(self, write: Write, kind: str, size: int) -> Message:
        """Run a call on so many items. Raises what it raised, or EngineLost when the process did not answer."""
        with self._calling:
            process = self._process
            if process is None or self.state is not State.LIVE:
                raise EngineLost("the engine's process is not running", has_run=False)
            started_s = time.monotonic()
            try:
                message = process.call(write, self._patience.limit_s(kind, size))
            except ProcessLost as lost:
                self._give_up()
                self._died_of = kind if lost.has_run else None
                raise EngineLost(f"the engine's process was lost: {lost.reason}", has_run=lost.has_run) from lost
            self._patience.observe(kind, size, time.monotonic() - started_s)
            return message

    def kill(self) -> None:
        """Kill the process, and start no other."""
        with self._changed:
            self._set(State.CLOSED)
            if self._process is not None:
                self._process.kill("closed")

    def join(self) -> None:
        """Wait until the process that was killed is gone."""
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        """Start a process, watch it until it dies, pause; over and over. The thread's whole life."""
        while True:
            reason = self._live()
            if self._is_closed():
                return
            self._on_restart(reason)
            self._pause(reason)

    def _live(self) -> str:
        """Run one process from its start to its end, and return why it ended."""
        try:
            process = EngineProcess.spawn(self._limits)
        except (EngineError, OSError) as error:
            self._fail(error if isinstance(error, EngineError) else EngineError(f"no process: {error}"))
            return "start"
        self._patience.renew()
        self._died_of = None
        reason = "crash"
        try:
            reason = self._open(process) or self._watch(process)
        finally:
            self._end(process, reason)
        return reason

    def _open(self, process: EngineProcess) -> str | None:
        """Let a process open the model; returns why that failed."""
        with self._changed:
            self._process = process
            self.num_starts += 1
            if self._is_closed():
                return "closed"
        try:
            hello = self._require_same(process.open(self._asked, self._limits.start_s))
        except (EngineError, ProcessLost) as error:
            self._fail(error if isinstance(error, EngineError) else None)
            process.kill("start")
            return "start"
        with self._changed:
            self.hello, self.failure = hello, None
            self._set(State.LIVE)
        return None

    def _require_same(self, hello: Hello) -> Hello:
        """Refuse another model than the first that was opened: answers would change without a word."""
        if self.hello is not None and hello != self.hello:
            raise EngineError("the model is another one than at the start")
        return hello

    def _watch(self, process: EngineProcess) -> str:
        """Wait for a process's death, and return its reason; one that is silent though idle is killed."""
        while not process.wait_end(self._limits.heartbeat_s):
            if self._calling.acquire(blocking=False):
                try:
                    process.call(lambda _: Ping(), self._limits.hang_s)
                except (ProcessLost, EngineError):
                    self._give_up()
                    process.kill("crash")  # it may hang on its way out
                finally:
                    self._calling.release()
        return process.lost or "crash"

    def _end(self, process: EngineProcess, reason: str) -> None:
        self._give_up()
        process.kill(reason)
        with self._calling, self._changed:  # a call that runs ends with its process
            self._process = None
        code = process.bury()
        if not self._is_closed():
            _log.warning("process.ended", pid=process.pid, code=code, reason=reason)

    def _give_up(self) -> None:
        with self._changed:
            if self.state is State.LIVE:
                self._set(State.DOWN)

    def _fail(self, error: EngineError | None) -> None:
        with self._changed:
            self.failure = error
        _log.warning("process.start_failed", reason=None if error is None else str(error))

    def _pause(self, reason: str) -> None:
        """Wait until the next process may be started."""
        now_s = time.monotonic()
        until_s = self._restarts.died(now_s, was_useful=reason != "start" and self._was_useful())
        with self._changed:
            if self._restarts.is_broken(now_s):
                _log.error("process.crash_loop", pause_s=until_s - now_s)
                self._set(State.BROKEN)
            else:
                self._set(State.STARTING)
            self._changed.wait_for(self._is_closed, until_s - now_s)
            self._set(State.STARTING)

    def _was_useful(self) -> bool:
        """Tell whether a process died idle, or in a call of a kind that it had answered before."""
        return self._died_of is None or self._patience.has_seen(self._died_of)

    def _is_closed(self) -> bool:
        return self.state is State.CLOSED

    def _set(self, state: State) -> None:
        """Change the state, which `changed` guards; closed is for ever."""
        if not self._is_closed():
            self.state = state
            self._changed.notify_all()
