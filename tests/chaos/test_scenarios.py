"""The short form of every scenario of `make chaos`: real servers, harmed, and a ledger that demands the right bytes."""

import shutil
import sys
from pathlib import Path

import pytest
from harness.catalogue import catalogue, is_alone
from harness.report import table
from harness.scenario import run

SCENARIOS = {scenario.name: scenario for scenario in catalogue(is_full=False)}


def has_redis() -> bool:
    return any(shutil.which("redis-server", path=path) for path in (None, str(Path(sys.executable).parent)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.alone] * is_alone(SCENARIOS[name])) for name in SCENARIOS]
)
def test_holds(name):
    if SCENARIOS[name].server.has_redis and not has_redis():
        pytest.skip("no redis-server is installed")
    result = run(SCENARIOS[name])
    assert result.is_met, table([result.record()])


def test_what_measures_times_runs_by_itself_and_what_counts_does_not():
    alone = {name for name, scenario in SCENARIOS.items() if is_alone(scenario)}
    assert {"overload", "leak", "redis_stopped", "slow_sockets", "crash_loop", "corrupt_entries"} <= alone
    assert {"control_mixed_up", "nan", "specials", "worker_killed", "terminated"} <= SCENARIOS.keys() - alone
