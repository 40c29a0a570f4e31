"""The short form of every scenario of `make chaos`: real servers, harmed, and a ledger that demands the right bytes."""

import shutil
import sys
from pathlib import Path

import pytest
from harness.catalogue import catalogue
from harness.report import table
from harness.scenario import run

pytestmark = pytest.mark.alone

SCENARIOS = {scenario.name: scenario for scenario in catalogue(is_full=False)}


def has_redis() -> bool:
    return any(shutil.which("redis-server", path=path) for path in (None, str(Path(sys.executable).parent)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_holds(name):
    if SCENARIOS[name].server.has_redis and not has_redis():
        pytest.skip("no redis-server is installed")
    result = run(SCENARIOS[name])
    assert result.is_met, table([result.record()])
