"""Scenarios over real HTTP against the toy: answers are checked, and a cache that helps is caught."""

import asyncio
import os
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec, sample
from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.evaluation import clip_query
from foreframe_server.load.bench import Bench
from foreframe_server.load.door import open_door
from foreframe_server.load.exam import Sheet, grade
from foreframe_server.load.scenarios import ExamPlan, ScenarioPlan, measure_scenario
from foreframe_server.load.traces import Ask
from foreframe_server.opening import given
from foreframe_server.settings import PREFIX

ASK = Ask(members=2, steps=2)
ENGINE = ToyRolloutEngine(toy_contract(size=16))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def sheets():
    return [build_sheet(seed) for seed in range(3)]


def build_sheet(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    clip = Clip(seed, 0, frames, rng.standard_normal((12, 3), dtype=np.float32), np.zeros((12, 16, 16), np.uint8))
    query = clip_query(ENGINE.contract, clip)
    query = replace(query, sampling=replace(query.sampling, steps=2), ensemble=EnsembleSpec(2))
    return Sheet(clip, query.sampling.seed, sample(ENGINE, query).frames)


def measure(plan, sheets):
    async def run(address):
        async with open_door(address) as door:
            return await measure_scenario(Bench(door, max_lag_ms=60_000, note=lambda line: None), plan, sheets)

    with running_server(read_overridden(host="127.0.0.1", port=0), given(ENGINE)) as address:
        return asyncio.run(run(address))


@pytest.mark.parametrize(("scenario", "statistic"), [("single-stream", "p90"), ("server", "p99"), ("offline", "mean")])
def test_every_scenario_asks_both_ways_and_checks_answers(sheets, scenario, statistic):
    plan = ScenarioPlan(scenario, ASK, 16, ExamPlan(3), rate_hz=200, slo_ms=60_000)
    findings = measure(plan, sheets)
    assert findings.faults == []
    assert [part.summary.ok for part in findings.parts] == [16, 16]
    assert findings.facts["exam"]["parity_db"] == 100.0
    assert findings.facts["members_from_the_cache"] == 0
    assert findings.samples[0].statistic == statistic
    assert {bar.measure for bar in findings.bars if bar.is_met} >= {"quality over the reference's"}
    assert (findings.schedule is not None) == (scenario == "server")


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_questions_that_come_again_mark_the_run_as_cached(sheets, scenario):
    findings = measure(ScenarioPlan(scenario, ASK, 16, ExamPlan(3), distinct=2, rate_hz=200), sheets)
    assert findings.facts["is_cached"]
    assert findings.facts["members_from_the_cache"] > 0
    assert not {bar.measure: bar for bar in findings.bars}["members from the cache"].is_met


def test_a_wrong_answer_is_caught(sheets):
    wrong = [replace(sheets[0], answer=255 - sheets[0].answer), *sheets[1:]]
    findings = measure(ScenarioPlan("offline", ASK, 8, ExamPlan(3)), wrong)
    assert ["1 of 3 answers are wrong" in fault for fault in findings.faults] == [True]
    assert not findings.report({}).is_valid


def test_questions_that_are_refused_make_the_run_invalid(sheets):
    plan = ScenarioPlan("offline", replace(ASK, steps=9999), 8, ExamPlan(3))
    faults = measure(plan, sheets).faults
    assert any("8 of 8 questions were not answered" in fault and "invalid_request" in fault for fault in faults)
    assert any("3 of 3 clips were not answered" in fault for fault in faults)


def test_an_answer_of_another_shape_is_none(sheets):
    assert grade(sheets[0], sheets[0].answer[:-1]).parity_db is None
    exact = grade(sheets[0], sheets[0].answer)
    assert (exact.parity_db, exact.psnr_db) == (100.0, exact.reference_psnr_db)
