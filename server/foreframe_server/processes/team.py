"""A model's processes, one a device, and the engines that stand for them on this side.

An engine prefers the process of its own device, borrows another's while its own is down, and waits when all are.
It never repeats a call that has begun: whoever asked decides.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

from foreframe_engines import EngineLost
from foreframe_server.opening import OpenedEngines, OpenEngines
from foreframe_server.processes.channel import Message
from foreframe_server.processes.engines import ProcessLikelihoodEngine, ProcessRolloutEngine
from foreframe_server.processes.keeper import ProcessKeeper, State
from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.messages import Hello, Open
from foreframe_server.processes.notes import read_calibration, read_facts, read_folder
from foreframe_server.processes.openers import name_opener
from foreframe_server.processes.process import Write
from foreframe_server.settings import EngineSettings

_DEAD = (State.BROKEN, State.CLOSED)


class EngineTeam:
    """Keeps `size` processes alive in each of which `opener` has opened the model: `start`, `opened`, then `close`.

    opener: found again by its dotted name on the other side, so it must be a function of a module.
    on_restart: told, in a thread of its own, each time a process is to be replaced: `crash` (it ended by itself or was
    killed), `hang` (no answer within the limit), `corrupt` (its answer could not be read) or `start` (it did not open
    the model).
    """

    def __init__(
        self,
        opener: OpenEngines,
        settings: EngineSettings,
        *,
        size: int,
        on_restart: Callable[[str], None],
        limits: ProcessLimits | None = None,
    ) -> None:
        """Raise ValueError when the opener has no name to be found by."""
        asked = Open(opener=name_opener(opener), settings=settings.model_dump_json())
        self._limits = limits or ProcessLimits()
        self._changed = threading.Condition()
        self._keepers = [ProcessKeeper(asked, self._limits, self._changed, on_restart) for _ in range(size)]
        self._num_out = 0
        self._is_started = False

    @property
    def is_ready(self) -> bool:
        """Whether calls are taken: started, not closed, and not every process is in a crash loop."""
        return self._is_started and any(keeper.state not in _DEAD for keeper in self._keepers)

    @property
    def pids(self) -> tuple[int | None, ...]:
        """The processes' numbers; None for one that is being replaced."""
        return tuple(keeper.pid for keeper in self._keepers)

    @property
    def num_live(self) -> int:
        """How many processes take calls now."""
        return sum(keeper.state is State.LIVE for keeper in self._keepers)

    def start(self) -> None:
        """Start every process and wait until each has opened the model.

        Raises what opening raises, RuntimeUnavailable where processes cannot be had, and EngineLost when one dies
        over and over while it opens.
        """
        for keeper in self._keepers:
            keeper.start()
        try:
            with self._changed:
                for keeper in self._keepers:
                    self._changed.wait_for(partial(_has_settled, keeper))
                    _require_open(keeper)
        except BaseException:
            self.close()
            raise
        self._is_started = True

    def opened(self, index: int) -> OpenedEngines:
        """Return engines that prefer process `index`; the team closes when all that were given out are closed.

        Each of their calls may raise EngineLost, and beside it what it raises in this process. Raises EngineLost when
        the team was not started.
        """
        hello, run = self._hello(), partial(self._call, index)
        rollout = likelihood = None
        if hello.rollout is not None:
            rollout = ProcessRolloutEngine(read_facts(hello.rollout), run, self._take_back)
        if hello.likelihood is not None:
            likelihood = ProcessLikelihoodEngine(read_facts(hello.likelihood), run, self._take_back)
        self._num_out += sum(engine is not None for engine in (rollout, likelihood))
        return OpenedEngines(hello.fingerprint, rollout, likelihood, read_calibration(hello), read_folder(hello))

    def close(self) -> None:
        """Kill every process and wait until it is gone; calls that run raise EngineLost. Closing twice does nothing."""
        for keeper in self._keepers:
            keeper.kill()
        for keeper in self._keepers:
            keeper.join()

    def _hello(self) -> Hello:
        hello = self._keepers[0].hello
        if hello is None:
            raise EngineLost("the engine's processes were not started", has_run=False)
        return hello

    def _call(self, index: int, write: Write, kind: str, size: int) -> Message:
        until_s = time.monotonic() + self._limits.wait_s
        while True:
            try:
                return self._choose(index, until_s).call(write, kind, size)
            except EngineLost as lost:
                if lost.has_run or time.monotonic() >= until_s or not self.is_ready:
                    raise

    def _choose(self, index: int, until_s: float) -> ProcessKeeper:
        """Wait for a live process: that of the index, or the next one. Raises EngineLost when none will be there."""
        preferred = self._keepers[index:] + self._keepers[:index]
        with self._changed:
            while True:
                live = next((keeper for keeper in preferred if keeper.state is State.LIVE), None)
                if live is not None:
                    return live
                left_s = until_s - time.monotonic()
                if left_s <= 0 or all(keeper.state in _DEAD for keeper in preferred):
                    raise EngineLost("none of the engine's processes is running", has_run=False)
                self._changed.wait(left_s)

    def _take_back(self) -> None:
        with self._changed:
            self._num_out -= 1
            is_last = self._num_out == 0
        if is_last:
            self.close()


def _has_settled(keeper: ProcessKeeper) -> bool:
    """Tell whether a start has come to something: a model, what opening raised, or a crash loop."""
    return keeper.state in (State.LIVE, *_DEAD) or keeper.failure is not None


def _require_open(keeper: ProcessKeeper) -> None:
    if keeper.failure is not None:
        raise keeper.failure
    if keeper.hello is None:
        ended = "was closed" if keeper.state is State.CLOSED else "died over and over"
        raise EngineLost(f"the engine's process {ended} while it opened the model", has_run=False)
