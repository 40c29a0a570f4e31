"""Each bar holds foreframe against the best peer of that measure."""

from peers.catalogue import catalogue
from peers.passes import list_passes
from peers.plan import Plan
from peers.report import find_bars, write_record
from peers.tables import write_markdown


def goodput_of(per_s):
    return {
        "goodput_per_s": per_s, "with_degraded_per_s": per_s + 1, "robots_asked": 9, "whole": 7, "degraded": 1,
        "planners_asked": 2, "planners_answered": 2, "robots_ms": {"p50": 400.0, "p99": 480.0},
    }  # fmt: skip


def result(goodput, throughput, cpu_s, stub=None, psnr=20.0, engine_ms=200.0):
    found = {
        "version": None,
        "engine_ms": {"before": 200.0, "after": engine_ms}, "start_s": 1.0, "code": "c", "taken_at": "2026-01-01",
        "alone": {"idle_cpu_s": 0.01, "useful_ms": 40.0},
        "saturated": {"answers_per_s": throughput, "cpu_s_per_answer": 0.5, "rss_bytes": 10**8},
        "mixed": [{"load": 0.9, "offered": 0.93, "goodput": goodput_of(goodput)}],
        "quality": {"strategy": "sample", "members": 20, "psnr_db": psnr, "plain_psnr_db": 20.2, "answer_ms": 5.0,
                    "cpu_s_per_answer": cpu_s},
    }  # fmt: skip
    ways = {"raw": {"answers_per_s": stub, "p50_ms": 1.0, "p99_ms": 2.0, "server_cpu_ms_per_answer": 1.0}}
    return found | ({} if stub is None else {"stub": {"answers_per_s": stub, "ways": ways}})


RESULTS = {
    "foreframe": result(4.0, 6.0, 0.01, 900.0),
    "fastapi": result(1.0, 5.0, 0.3),
    "mosec": result(2.0, 4.0, 0.2, 1000.0),
}

PLAIN = {name: value for name, value in result(0.0, 3.0, 0.1).items() if name not in {"alone", "mixed", "quality"}}


def test_the_best_peer_of_each_measure_is_what_counts():
    bars = {bar.measure: bar for bar in find_bars(RESULTS)}
    assert bars["goodput at 0.9, whole answers only / best peer"].value == 2.0
    assert bars["throughput of the 8-member mean / best peer on foreframe's engine"].value == 1.2
    assert bars["processor seconds of the best peer's plain loop / posterior mean"].value == 20.0
    assert bars["requests per second of the stub / mosec"].value == 0.9
    assert not bars["requests per second of the stub / mosec"].is_met
    assert all(bar.is_met for name, bar in bars.items() if "stub" not in name)


def test_worse_quality_is_not_the_same_quality():
    worse = RESULTS | {"foreframe": result(4.0, 6.0, 0.01, psnr=19.8)}
    (bar,) = [bar for bar in find_bars(worse) if "PSNR" in bar.measure]
    assert not bar.is_met


def test_without_foreframe_or_without_peers_there_is_nothing_to_compare():
    assert find_bars({"foreframe": RESULTS["foreframe"]}) == []
    assert find_bars({"mosec": RESULTS["mosec"]}) == []


def test_foreframe_counts_by_the_worse_of_its_two_passes():
    bars = {bar.measure: bar for bar in find_bars(RESULTS | {"foreframe-again": result(3.0, 7.0, 0.01)})}
    goodput = bars["goodput at 0.9, whole answers only / best peer"]
    assert (goodput.value, goodput.rounds, goodput.is_met) == (1.5, (2.0, 1.5), False)
    assert bars["throughput of the 8-member mean / best peer on foreframe's engine"].value == 1.2


def test_plain_passes_are_a_measure_of_their_own():
    bars = {bar.measure: bar for bar in find_bars(RESULTS | {"mosec-plain": PLAIN})}
    assert bars["throughput of the 8-member mean / best peer on foreframe's engine"].value == 1.2
    assert bars["throughput of the 8-member mean / best peer on plain ONNX Runtime"].value == 2.0


def test_the_tables_say_what_peers_could_not_do_and_what_was_not_measured():
    text = tables(RESULTS | {"mosec-plain": PLAIN}, {"bentoml": "bentoml cannot be installed: why"})
    assert text.startswith("# Beside other servers\n")
    assert "two cores of a processor" in text.replace("\n", " ")
    assert "| foreframe | MessagePack | 6.00 |" in text
    assert "| 93% (main) | foreframe | 400 / 480 | 4.00 | 7 · 1 · 1 | 2 of 2 |" in text
    assert "mosec on plain ONNX Runtime, members as one batch | raw bytes | 3.00 | – |" in text
    assert "- **mosec**: a question has no deadline" in text
    assert "- bentoml cannot be installed: why" in text
    assert "can hardly exceed 1" in text
    assert "**missed**" in text
    assert "†" not in text


def test_a_row_is_marked_where_the_machine_was_not_the_same():
    text = tables(RESULTS | {"mosec": result(2.0, 4.0, 0.2, 1000.0, engine_ms=245.0)}, {})
    assert "| mosec † |" in text
    assert "| fastapi † |" not in text
    assert "† cannot be relied on" in text


def tables(results, missing):
    plan = Plan(answer_s=0.2, arrangement="lanes").record()
    facts = {"plan": plan, "commit": "c", "machine": "a processor"}
    return write_markdown(write_record(results, list_passes(catalogue()), missing, facts))
