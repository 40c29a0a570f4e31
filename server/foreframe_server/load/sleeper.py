"""A model whose every forward sleeps, so that what is measured is how many of them run at once."""

import time
from collections.abc import Sequence
from dataclasses import replace

from foreframe_engines import StepRow
from foreframe_engines.types import StepState
from foreframe_server.load.stub import StubEngine, stub_contract
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import EngineSettings

STEP_S = 0.05
_SIZE = 16


class SleepingEngine(StubEngine):
    """A stub that takes `STEP_S` for a forward of whatever size, on no core."""

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Sleep, and step as a toy does."""
        time.sleep(STEP_S)
        return super().step(rows)


def open_sleeper(_: EngineSettings) -> OpenedEngines:
    """Open one, of two rows a forward."""
    contract = replace(stub_contract(_SIZE, 2), buckets=(1, 2))
    return OpenedEngines("sleeper", SleepingEngine(contract))
