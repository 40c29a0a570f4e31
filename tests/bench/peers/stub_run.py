"""The stub behind servers that take raw bodies: answers per second when connections never pause."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from peers.catalogue import Peer, StubWay
from peers.errors import Invalid
from peers.hammer import Refused, Tally, ask_once, hammer, require_spare_time
from peers.hosting import hosted, stub
from peers.plan import Plan
from peers.servers import Server, free_port, running
from peers.stub_wires import StubQuestion, stub_question

from foreframe_server.load.summary import percentile

_START_S, _POLL_S, _WARM_UP_S = 60.0, 0.1, 0.5
_TARGET_S, _PROBE = 0.0006, 200


def fit_rounds() -> int:
    """Return how many products the stub has to make to take 0.6 ms here."""
    model = stub.StubModel(_PROBE)
    model.work()
    round_s = min(_time(model.work) for _ in range(5)) / _PROBE
    return max(1, round(_TARGET_S / round_s))


def measure_stub(
    peer: Peer, environment: Mapping[str, str], cores: Sequence[int], plan: Plan, note: Callable[[str], None]
) -> Mapping[str, object]:
    """Run every way of a server and return the fastest, with all of them beside it. Raises Invalid."""
    rates: dict[str, Mapping[str, object]] = {}
    for way in peer.stub_ways:
        note(f"stub, {way.name}, for {plan.stub_s:g} s")
        rates[way.name] = _measure_way(peer, way, environment, cores, plan)
    best = max(rates, key=lambda name: float(str(rates[name]["answers_per_s"])))
    return {"best": best, **rates[best], "ways": rates}


def _measure_way(
    peer: Peer, way: StubWay, environment: Mapping[str, str], cores: Sequence[int], plan: Plan
) -> Mapping[str, object]:
    assert peer.stub_command is not None
    port = free_port()
    told = {
        **environment,
        hosted.PORT: str(port),
        hosted.MODEL: hosted.STUB,
        hosted.MAX_BATCH: str(way.max_batch),
        hosted.WAIT_MS: str(way.wait_ms),
        hosted.STUB_ROUNDS: str(plan.stub_rounds),
    }
    questions = [stub_question(peer.name, way.name, peer.stub_path, content) for content in range(plan.connections)]
    with running(peer.stub_command(port), told, cores, port=port, cwd=Path(peer.folder)) as server:
        _wait_until_answering(server, questions[0])
        hammer(port, questions, _WARM_UP_S)
        cpu_s = server.cpu_s()
        tallies = hammer(port, questions, plan.stub_s)
        return _record(tallies, server.cpu_s() - cpu_s)


def _record(tallies: Sequence[Tally], cpu_s: float) -> Mapping[str, object]:
    latencies = sorted(latency for tally in tallies for latency in tally.latencies_ms)
    elapsed_s = max(tally.elapsed_s for tally in tallies)
    return {
        "answers_per_s": round(len(latencies) / elapsed_s, 2),
        "p50_ms": round(median(latencies), 3),
        "p99_ms": round(percentile(latencies, 0.99), 3),
        "server_cpu_ms_per_answer": round(1000 * cpu_s / len(latencies), 4),
        "askers_busy": round(require_spare_time(tallies), 3),
    }


def _wait_until_answering(server: Server, question: StubQuestion) -> None:
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < _START_S:
        if server.has_ended:
            raise Invalid(f"the server ended as it started: {server.last_words}")
        try:
            ask_once(server.port, question)
        except (OSError, Refused):
            time.sleep(_POLL_S)
        else:
            return
    raise Invalid(f"the server did not answer within {_START_S:g} s: {server.last_words}")


def _time(call: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s
