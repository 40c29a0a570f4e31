"""A report as a table: every number that a reader compares stands in it."""

import io

from rich.console import Console

from foreframe_server.cli.report import report_record, report_table
from foreframe_server.evaluation import LatencyMeasures, NoisePlanMeasures, Report


def make_report(**changes):
    report = {
        "model": "eve",
        "revision": "7",
        "clips": 3,
        "horizon": 8,
        "steps": 4,
        "psnr_reconstruction": 31.0,
        "psnr_copy_last": 15.0,
        "psnr_sample": 19.25,
        "psnr_ensemble": {1: 19.25, 2: 19.5, 20: 20.5},
        "psnr_posterior_mean": 20.25,
        "psnr_zero_states": 16.0,
        "psnr_shuffled_states": 14.0,
        "psnr_in_masks": {1: 12.0, 20: 14.0},
        "variance_in_masks_over_outside": 6.5,
        "spread_skill": [0.5, 0.75],
        "curves": {},
    }
    return Report(**{**report, **changes})


def text_of(report):
    console = Console(file=io.StringIO(), width=140)
    console.print(report_table(report))
    return console.file.getvalue()


def test_the_table_says_what_is_gained_and_lost():
    text = text_of(make_report())
    for words in ("+4.25 dB on copying", "+1.25 dB on one member", "-0.25 dB on mean of 20", "-3.25 dB", "-5.25 dB"):
        assert words in text
    for words in ("6.5x", "0.50 .. 0.75", "+2.00 dB on one member"):
        assert words in text


def test_what_was_not_measured_is_not_shown():
    text = text_of(make_report(psnr_in_masks=None, variance_in_masks_over_outside=None))
    for words in ("uncertain", "inside", "HTTP", "antithetic"):
        assert words not in text


def test_latency_and_noise_plans_are_shown_when_measured():
    plans = NoisePlanMeasures(2, 256, {10: 1e-4}, {20: 2e-4}, -0.8)
    text = text_of(make_report(latency_ms=LatencyMeasures(120.4, 900.0), noise_plans=plans))
    for words in ("120 ms", "900 ms", "1.00e-04", "2.00e-04", "-0.80"):
        assert words in text


def test_the_record_leaves_noise_plans_out_unless_asked():
    assert "noise_plans" not in report_record(make_report())
    plans = NoisePlanMeasures(2, 256, {10: 1e-4}, {20: 2e-4}, -0.8)
    assert report_record(make_report(noise_plans=plans))["noise_plans"]["reference_members"] == 256
