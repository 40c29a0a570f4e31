"""Each bar holds foreframe against the best peer of that measure."""

from peers.catalogue import catalogue
from peers.report import find_bars, write_markdown, write_record


def goodput_of(per_s):
    return {
        "goodput_per_s": per_s, "with_degraded_per_s": per_s + 1, "robots_asked": 9, "whole": 7, "degraded": 1,
        "planners_asked": 2, "planners_answered": 2, "robots_ms": {"p50": 400.0, "p99": 480.0},
    }  # fmt: skip


def result(goodput, throughput, cpu_s, stub=None, psnr=20.0):
    found = {
        "version": None,
        "engine_ms": 200.0, "start_s": 1.0,
        "alone": {"idle_cpu_s": 0.01, "useful_ms": 40.0},
        "saturated": {"answers_per_s": throughput, "cpu_s_per_answer": 0.5, "rss_bytes": 10**8},
        "mixed": {"goodput": goodput_of(goodput)},
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


def test_the_best_peer_of_each_measure_is_what_counts():
    bars = {bar.measure: bar for bar in find_bars(RESULTS)}
    assert bars["goodput, whole answers only / best peer"].value == 2.0
    assert bars["throughput of the 8-member mean / best peer"].value == 1.2
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


def test_the_tables_say_what_peers_could_not_do():
    plan = {"rate_hz": 2.0, "members": 8, "deadline_ms": 500, "bulk_members": 32, "load": 0.9}
    text = write_markdown(write_record(RESULTS, catalogue(), {"plan": plan}))
    assert "| foreframe | MessagePack | 6.00 | 400 / 480 | 4.00 | 7 · 1 · 1 | 2 of 2 |" in text
    assert "- **mosec**: a question has no deadline" in text
    assert "**missed**" in text
