"""The one thread that owns the device: it runs what is handed in, one turn of work after another. Knows no engine.

What it runs for others comes in as commands; what it does of its own accord is its subclass's `turn`.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from foreframe_server.errors import NotReady
from foreframe_server.metrics import Metrics
from foreframe_server.tickets import answer

_IDLE_TURN_S = 1.0

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class DeviceThread:
    """A thread for one device: `start`, any number of `run`, then `stop`.

    A subclass that has work of its own says so in `has_work` and does a little of it in `turn`; both are called with
    commands out of the way, `has_work` while `wake` is held.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = metrics
        self.clock = clock
        self.wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._serve, name="foreframe-device", daemon=True)
        self._is_stopped = False

    @property
    def is_ready(self) -> bool:
        """Whether commands are taken."""
        return not self._is_stopped and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread that owns the device."""
        self._thread.start()

    async def run(self, action: Callable[[], T]) -> T:
        """Run an action on the device's thread before its next turn, and return or raise what it does.

        Raises NotReady when the thread has not been started or has stopped.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self.wake:
            if self._is_stopped or not self._thread.is_alive():
                raise NotReady("The device is not running.", retry_after_ms=1000)
            self._commands.append(partial(answer, future, action))
            self.wake.notify()
        return await future

    async def join(self) -> None:
        """Let the turn that runs end, finish, and join the thread."""
        with self.wake:
            self._is_stopped = True
            self.wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self.metrics.forget_device(id(self))

    def has_work(self) -> bool:
        """Whether there is anything to do beside commands."""
        return False

    def turn(self) -> None:
        """Do a little of the work."""

    def fault(self) -> None:
        """Answer everybody who waits for work that failed unexpectedly."""

    def finish(self) -> None:
        """Do what remains when the thread ends."""

    def _serve(self) -> None:
        while self._wait_for_work():
            started_s = self.clock()
            try:
                self._run_commands()
                self.turn()
            except Exception:  # noqa: BLE001 - the border of the thread: it logs, answers and lives on
                _log.exception("device.turn_failed")
                self.fault()
            self.metrics.observe_device(self.clock() - started_s, is_busy=True, device=id(self))
        self._run_commands()
        self.finish()

    def _wait_for_work(self) -> bool:
        with self.wake:
            while not (self._is_stopped or self._commands or self.has_work()):
                started_s = self.clock()
                self.wake.wait(_IDLE_TURN_S)
                self.metrics.observe_device(self.clock() - started_s, is_busy=False, device=id(self))
            return not self._is_stopped

    def _run_commands(self) -> None:
        # Only those that wait now: whoever asks again at once must not keep steps from running.
        for _ in range(len(self._commands)):
            self._commands.popleft()()
