"""Two reports compared: what is worse is found, noise is not, and what says nothing about each other is refused."""

from dataclasses import replace

import numpy as np
import pytest

from foreframe_server.reports.comparison import (
    Incomparable,
    Verdict,
    compare_reports,
    compare_samples,
    judge,
    weighted_quantile,
)
from foreframe_server.reports.samples import Samples, UnreadableReport

RNG = np.random.default_rng(0)
HARD = RNG.gamma(4, 20, 60)
"""What questions differ by, far more than what a regression adds."""


def latency(factor=1.0, seed=1, **fields):
    noise = np.random.default_rng(seed).normal(1, 0.02, len(HARD))
    return Samples("latency", "ms", "lower", tuple(HARD * noise * factor), **fields)


@pytest.mark.parametrize("statistic", ["mean", "median", "p90", "p99"])
def test_the_same_again_is_the_same(statistic):
    compared = compare_samples(latency(statistic=statistic), latency(seed=2, statistic=statistic), 0.05)
    assert compared.verdict is Verdict.SAME
    assert compared.ratio.low < 1.02
    assert compared.ratio.high > 0.98


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, Verdict.WORSE), (0.8, Verdict.BETTER), (1.04, Verdict.SAME)])
def test_a_planted_change_is_found_question_by_question(factor, verdict):
    compared = compare_samples(latency(), latency(factor, seed=2), 0.05)
    assert compared.is_paired
    assert compared.verdict is verdict
    assert compared.ratio.mean == pytest.approx(factor, abs=0.02)


def test_pairs_see_what_two_separate_means_do_not():
    paired = compare_samples(latency(), latency(1.2, seed=2), 0.05)
    apart = replace(latency(1.2, seed=2), values=latency(1.2, seed=2).values[:-1])
    unpaired = compare_samples(latency(), apart, 0.05)
    assert not unpaired.is_paired
    assert unpaired.ratio.high - unpaired.ratio.low > 3 * (paired.ratio.high - paired.ratio.low)
    assert unpaired.verdict is Verdict.SAME


def test_what_is_better_high_is_worse_when_it_falls():
    rates = replace(latency(), better="higher")
    assert compare_samples(rates, replace(latency(0.8), better="higher"), 0.05).verdict is Verdict.WORSE


def test_blocks_are_resampled_whole():
    alone = compare_samples(latency(), latency(seed=2), 0.0)
    together = tuple(np.repeat(np.arange(6), 10))
    blocked = compare_samples(latency(blocks=together), latency(seed=2, blocks=together), 0.0)
    assert blocked.is_paired
    assert blocked.ratio != alone.ratio


@pytest.mark.parametrize("values", [(1.0, 2.0), (0.0, 0.0, 0.0, 0.0)])
def test_too_little_to_tell_is_unknown(values):
    samples = Samples("x", "ms", "lower", values)
    assert compare_samples(samples, samples, 0.05).verdict is Verdict.UNKNOWN
    assert judge(None, "lower", 0.05) is Verdict.UNKNOWN


def test_a_weighted_quantile_is_that_of_repeated_values():
    values, counts = np.array([3.0, 1.0, 2.0]), np.array([[1, 2, 1], [0, 0, 4]])
    medians = weighted_quantile(counts / 4, values, 0.5)
    assert medians.tolist() == [1.0, 2.0]
    assert weighted_quantile(counts / 4, values, 0.99).tolist() == [3.0, 2.0]


def test_whole_reports_are_compared_by_the_measures_they_share(document):
    other = Samples("other", "ms", "lower", (1.0, 2.0, 3.0))
    comparison = compare_reports(document([latency()]), document([latency(1.3, seed=2), other]), tolerance=0.05)
    assert [each.name for each in comparison.measures] == ["latency"]
    assert [each.name for each in comparison.regressions] == ["latency"]
    assert comparison.is_same_weights


def test_other_weights_are_compared_and_told(document, header):
    other = document([latency()], header=replace(header, weights=None))
    assert not compare_reports(document([latency()]), other, tolerance=0.05).is_same_weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experiment": "bench y"}, "bench x and of bench y"),
        ({"plan": {"rounds": 9}}, "rounds was 3 and 9"),
        ({"is_valid": False, "faults": ["off schedule"]}, "says nothing: off schedule"),
        ({"samples": []}, "no measure in common"),
    ],
)
def test_reports_that_say_nothing_about_each_other_are_refused(document, change, words):
    first = document([latency()])
    with pytest.raises(Incomparable, match=words):
        compare_reports(first, {**first, **change}, tolerance=0.05)


def test_machines_are_only_compared_when_asked(document, header):
    first = document([latency()])
    other = document([latency()], header=replace(header, machine=replace(header.machine, name="four cores")))
    with pytest.raises(Incomparable, match="two cores and four cores"):
        compare_reports(first, other, tolerance=0.05)
    assert compare_reports(first, other, tolerance=0.05, has_any_machine=True).measures


def test_what_is_no_report_is_refused(document):
    first = document([latency()])
    with pytest.raises(Incomparable, match="does not say what it measured"):
        compare_reports(first, {"parts": []}, tolerance=0.05)
    broken = {**first, "samples": [{**first["samples"][0], "values": [1.0, -1.0]}]}
    with pytest.raises(UnreadableReport, match=r"samples\[0\]"):
        compare_reports(first, broken, tolerance=0.05)
