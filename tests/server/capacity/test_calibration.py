"""The same robots before a real server and before the simulation: both are reported, and the costs kept."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.capacity.calibration import measure_foresight
from foreframe_server.capacity.costs import costs_from_json
from foreframe_server.capacity.simulation import Rules
from foreframe_server.cli.commands import app
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.load.bench import Bench
from foreframe_server.load.door import open_door
from foreframe_server.load.fleet import FleetPlan
from foreframe_server.load.traces import Ask
from foreframe_server.opening import given


@pytest.fixture(scope="module")
def findings():
    plan = FleetPlan(Ask(members=2, steps=2), counts=(1, 2), rate_hz=10.0, duration_s=1.0)

    async def run(address):
        async with open_door(address) as door:
            bench = Bench(door, max_lag_ms=60_000, note=lambda line: None)
            return await measure_foresight(bench, plan, toy_contract(), Rules(8))

    with running_server(read_overridden(host="127.0.0.1", port=0), given(ToyRolloutEngine())) as address:
        return asyncio.run(run(address))


def test_every_number_of_robots_is_measured_and_simulated(findings):
    assert [part.name for part in findings.parts] == ["1 measured", "1 simulated", "2 measured", "2 simulated"]
    assert [part.summary.sent for part in findings.parts] == [10, 10, 20, 20]
    assert {part.summary.members for part in findings.parts} == {2.0}
    assert len(findings.bars) == 6


def test_the_report_is_what_plans_are_made_from(findings, tmp_path):
    report = tmp_path / "foresight.json"
    report.write_text(json.dumps({"facts": dict(findings.facts)}))

    assert 1 in costs_from_json(report.read_text()).steps

    shown = CliRunner().invoke(app, ["capacity", str(report), "--robots", "5", "--seconds", "4", "--json"])

    assert shown.exit_code == 0, shown.output
    (plan,) = json.loads(shown.stdout)["plans"]
    assert (plan["robots"], plan["devices"]) == (5, 1)


def test_a_file_without_costs_is_named(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")

    shown = CliRunner().invoke(app, ["capacity", str(other)])

    assert shown.exit_code == 3
    assert "other.json" in shown.output
