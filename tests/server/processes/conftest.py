"""Teams of processes that run toys, closed and buried after each test."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import StepRow
from foreframe_engines.selftest import random_rows
from foreframe_server.processes.limits import ProcessLimits
from foreframe_server.processes.team import EngineTeam
from foreframe_server.settings import EngineSettings

sys.path.append(str(Path(__file__).parent))  # a process of its own opens a toy by its name

PATIENCE_S = 20
LIMITS = ProcessLimits(
    hang_s=0.5, start_s=PATIENCE_S, wait_s=PATIENCE_S, heartbeat_s=0.1, delay_s=0.01, max_delay_s=0.02, max_deaths=3
)


class Restarted:
    """Remembers the reasons of restarts, and waits for them."""

    def __init__(self):
        self.reasons = []
        self._changed = threading.Condition()

    def __call__(self, reason):
        with self._changed:
            self.reasons.append(reason)
            self._changed.notify_all()

    def wait(self, count=1):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.reasons) >= count, PATIENCE_S)


@pytest.fixture
def restarted():
    return Restarted()


@pytest.fixture
def limits():
    return LIMITS


@pytest.fixture
def make_team(restarted):
    """Teams of toys, started."""
    teams = []

    def make(opener, *, size=1, limits=LIMITS, bundle=None, is_started=True):
        team = EngineTeam(opener, EngineSettings(bundle=bundle), size=size, on_restart=restarted, limits=limits)
        teams.append(team)
        if is_started:
            team.start()
        return team

    yield make
    for team in teams:
        team.close()


@pytest.fixture
def wait_live():
    """Wait until so many processes of a team are alive."""

    def wait(team, count):
        with team._changed:
            assert team._changed.wait_for(lambda: team.num_live == count, PATIENCE_S)

    return wait


@pytest.fixture
def make_row():
    """A row of a toy's step whose guidance may be a mark."""

    def make(engine, guidance=1.0):
        (row,) = random_rows(engine, 1)
        return StepRow(row.latents, row.time, row.next_time, row.conditioning, (), guidance)

    return make


@pytest.fixture
def context():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
