"""Presets over real HTTP against the toy: what is counted is right; times are not looked at."""

import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from foreframe_engines import ModelFault
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.bench_http_engine import list_sizes, run_job
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server
from foreframe_server.load.bench import Bench
from foreframe_server.load.caching import CachePlan, count_computations, measure_cache
from foreframe_server.load.door import Door, UnfitServer, open_client, open_door, wait_until_ready
from foreframe_server.load.fleet import FleetPlan, measure_fleet
from foreframe_server.load.mixing import MixPlan, measure_mix, mix_trace
from foreframe_server.load.overload import OverloadPlan, measure_overload
from foreframe_server.load.processes import NotStarted, running_redis
from foreframe_server.load.records import UNREACHABLE
from foreframe_server.load.redis_faults import FaultPlan, measure_redis_fault
from foreframe_server.load.steady import PoissonPlan, measure_poisson
from foreframe_server.load.throughput import PlainLoop, ThroughputPlan, measure_throughput
from foreframe_server.load.traces import Ask, constant
from foreframe_server.opening import given
from foreframe_server.settings import PREFIX

PATIENCE_MS = 60_000


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def engine():
    return ToyRolloutEngine()


def measure(engine, work):
    """Serve the engine for as long as `work` measures it."""

    async def run(address):
        async with open_door(address) as door:
            return await work(Bench(door, max_lag_ms=PATIENCE_MS, note=lambda line: None))

    with running_server(read_overridden(host="127.0.0.1", port=0), given(engine)) as address:
        return asyncio.run(run(address))


def bars(findings):
    return {bar.measure: bar for bar in findings.bars}


def test_a_posterior_mean_and_a_sample_are_both_asked_and_answered(engine):
    async def ask(bench):
        asks = [Ask(members=3, steps=2), Ask(strategy="posterior_mean")]
        return [(await bench.play(constant(1, 1, ask)))[0].reply for ask in asks]

    sample, posterior = measure(engine, ask)
    assert (sample.code, sample.members, sample.cache) == ("ok", 3, "miss")
    assert sample.server_ms >= sample.device_ms > 0
    assert sample.rows_per_step > 0
    assert (posterior.code, posterior.members) == ("ok", 1)


def test_refusals_and_broken_connections_are_replies_too(engine):
    async def ask(bench):
        (refused,) = await bench.play(constant(1, 1, Ask(steps=9999)))
        async with open_client("http://127.0.0.1:1") as nobody:
            lost = await Door(nobody, bench.door.sizes).prepare(constant(1, 1, Ask())[0])()
        return refused.reply.code, lost.code

    assert measure(engine, ask) == ("invalid_request", UNREACHABLE)


def test_a_key_of_the_environment_is_sent(monkeypatch):
    assert "authorization" not in open_client("http://127.0.0.1:1").headers
    monkeypatch.setenv("FOREFRAME_API_KEY", "robot.secret")
    assert open_client("http://127.0.0.1:1").headers["authorization"] == "Bearer robot.secret"


def test_nobody_at_an_address_is_said_in_one_line():
    async def knock():
        async with open_door("http://127.0.0.1:1"):
            pytest.fail("nobody is there")

    with pytest.raises(UnfitServer, match="no server answers"):
        asyncio.run(knock())


def test_every_number_of_robots_gets_a_part_and_a_bar(engine):
    plan = FleetPlan(Ask(members=2), counts=(1, 3), rate_hz=10, duration_s=0.5)
    findings = measure(engine, lambda bench: measure_fleet(bench, plan))
    assert [part.summary.sent for part in findings.parts] == [5, 15]
    assert [bar.measure for bar in findings.bars] == ["deadline misses, 1 robot", "deadline misses, 3 robots"]
    assert findings.schedule.sent == 20


def test_overload_is_cut_into_before_during_and_after(engine):
    plan = OverloadPlan(
        Ask(steps=50, deadline_ms=2000), factor=2, overload_s=0.4, normal_load=0.2, normal_s=2.1, capacity_s=0.3
    )
    findings = measure(engine, lambda bench: measure_overload(bench, plan))
    before, during, after = (part.summary.sent for part in findings.parts)
    capacity = findings.facts["capacity_per_s"]
    assert during == pytest.approx(2 * capacity * 0.4, abs=2)
    assert before == after == pytest.approx(0.2 * capacity * 2.1, abs=2)
    assert findings.schedule.sent == before + during + after


def test_a_mix_is_played_as_it_is_and_one_at_a_time(engine):
    plan = MixPlan(
        Ask(members=1, steps=50), Ask(members=16, steps=50, priority="bulk"), duration_s=1.0, drained_planners=1
    )
    findings = measure(engine, lambda bench: measure_mix(bench, plan))
    names = ["mixed: controller", "mixed: planner", "one at a time: controller", "one at a time: planner"]
    assert [part.name for part in findings.parts] == names
    mixed, planner, serial, _ = (part.summary for part in findings.parts)
    assert (mixed.sent, mixed.ok) == (serial.sent, serial.ok)
    assert planner.members == 16
    assert all(bar.value is not None for bar in findings.bars)


def test_a_mix_offers_the_loads_it_says():
    plan = MixPlan(Ask(), Ask(priority="bulk"), controller_load=0.3, planner_load=0.5, duration_s=40)
    trace = mix_trace(plan, 0.1, 2.0)
    assert sum(arrival.group == "controller" for arrival in trace) == 120
    assert sum(arrival.group == "planner" for arrival in trace) == 10


def test_the_cache_is_timed_and_identical_questions_are_counted(engine):
    plan = CachePlan(Ask(members=6, steps=2), known=4, repeats=1, hits=3, identical=20)
    findings = measure(engine, lambda bench: measure_cache(bench, plan))
    judged = bars(findings)
    assert judged["top-up against cold, largest difference"].value == 0
    assert judged["computations of identical questions"].value == 1
    assert judged["failed identical questions"].is_met
    assert findings.facts["transfer_p50_ms"] > 0


def test_identical_questions_that_are_all_computed_are_caught(engine):
    plan = CachePlan(Ask(members=2, steps=2, cache="bypass"), identical=5)
    part, computations = measure(engine, lambda bench: count_computations([bench], plan))
    assert part.summary.ok == 5
    assert computations == 5


def test_throughput_is_held_against_the_rows_that_are_best_for_the_engine(engine):
    ran = []
    plan = ThroughputPlan(Ask(members=4, steps=3), askers=2, turn_s=0.2, turns=2, trial_s=0.1)

    def run_engine(max_rows, duration_s):
        ran.append((max_rows, duration_s))
        return {1: 400.0, 2: 1000.0, 4: 700.0}[max_rows]

    loop = PlainLoop((1, 2, 4), run_engine)
    findings = measure(engine, lambda bench: measure_throughput(bench, plan, loop))
    rates = [12 * part.summary.ok / part.duration_s for part in findings.parts]
    assert findings.facts["server_rows_per_s"] == pytest.approx(rates, rel=0.01)
    assert findings.bars[0].value == pytest.approx(sum(rates) / 2000, rel=0.01)
    assert ran == [(1, 0.1), (2, 0.1), (4, 0.1), (2, 0.2), (2, 0.2)]
    assert findings.facts["engine_rows_per_forward"] == 2
    assert len(findings.bars[0].rounds) == 2


@pytest.mark.parametrize(("members", "sizes"), [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 4]), (20, [1, 2, 4, 8])])
def test_the_plain_loop_tries_the_models_sizes_up_to_a_whole_job(members, sizes):
    assert list_sizes((1, 2, 4, 8), members) == sizes


@pytest.mark.parametrize("name", ["poisson", "overload", "mix", "rate"])
def test_a_server_that_answers_nothing_has_no_capacity(engine, name):
    ask = Ask(steps=9999)
    work = {
        "poisson": lambda bench: measure_poisson(bench, PoissonPlan(ask, capacity_s=0.1)),
        "overload": lambda bench: measure_overload(bench, OverloadPlan(ask, capacity_s=0.1)),
        "mix": lambda bench: measure_mix(bench, MixPlan(Ask(steps=2), ask)),
        "rate": lambda bench: bench.measure_rate(ask, askers=2, duration_s=0.1),
    }
    with pytest.raises(UnfitServer, match=r"none of .* were answered: invalid_request"):
        measure(engine, work[name])


def test_how_much_a_server_can_do_moves_no_later_question(engine):
    async def work(bench):
        await bench.measure_rate(Ask(steps=1), askers=2, duration_s=0.1)
        return bench.new_content()

    assert measure(engine, work) == measure(engine, work)


def test_a_server_that_is_not_ready_is_waited_for():
    statuses = [200, 503, 503]

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses.pop())
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            wait_until_ready(f"http://127.0.0.1:{server.server_port}", 10)
        finally:
            server.shutdown()
            thread.join()
    assert statuses == []


def test_nobody_is_waited_for_no_longer_than_said():
    wait_until_ready("http://127.0.0.1:1", 0)


def test_the_plain_loop_steps_every_row_once_and_no_wider_than_said(engine, make_query):
    run_job(engine, make_query(size=5, steps=3), 2)
    assert engine.step_rows == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert (engine.calls["encode"], engine.calls["condition"], engine.calls["decode"]) == (1, 1, 1)


def test_random_arrivals_stand_beside_an_ideal_server(engine):
    plan = PoissonPlan(Ask(members=2, steps=50), load=0.2, duration_s=1.0, capacity_s=0.3)
    findings = measure(engine, lambda bench: measure_poisson(bench, plan))
    facts = findings.facts
    assert findings.parts[0].summary.sent == pytest.approx(0.2 * facts["capacity_per_s"], abs=1)
    assert facts["ideal_p99_ms"] > facts["service_ms"] > 0
    assert findings.bars[0].value > 0


def test_a_dead_redis_under_load_is_struck_once_and_failures_are_counted(engine, monkeypatch):
    strikes = []
    try:
        with running_redis() as redis:
            monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", redis.url)
            monkeypatch.setenv("FOREFRAME_CACHE__SECRET", "s" * 64)
            plan = FaultPlan(Ask(steps=50), load=0.1, before_s=1.0, after_s=1.5, capacity_s=0.3)

            def strike():
                strikes.append("killed")
                redis.kill()

            findings = measure(engine, lambda bench: measure_redis_fault(bench, plan, "killed", strike))
    except NotStarted:
        pytest.skip("no redis-server is installed")
    assert strikes == ["killed"]
    assert bars(findings)["killed: failed requests"].value == 0
    assert sum(part.summary.sent for part in findings.parts) == findings.schedule.sent


def test_failed_requests_of_a_fault_are_seen():
    broken = threading.Event()

    def fail_when_broken(rows):
        if broken.is_set():
            raise ModelFault("planted")

    plan = FaultPlan(Ask(steps=2), load=0.05, before_s=0.5, after_s=1.2, capacity_s=0.2)
    engine = ToyRolloutEngine(step_hook=fail_when_broken)
    findings = measure(engine, lambda bench: measure_redis_fault(bench, plan, "planted", broken.set))
    assert bars(findings)["planted: failed requests"].value > 0
