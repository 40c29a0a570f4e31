"""An evaluation's report as JSON and as a table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.table import Table

from foreframe_server.cli.console import print_json, print_pretty
from foreframe_server.evaluation import LARGEST, NoisePlanMeasures, Report


@dataclass(frozen=True, slots=True)
class _Line:
    measure: str
    value: str
    meaning: str


def report_record(report: Report) -> dict[str, object]:
    """Return the report as the object that is printed and written."""
    record = asdict(report)
    if report.noise_plans is None:
        del record["noise_plans"]
    return record


def print_report(report: Report, *, is_json: bool) -> None:
    """Print the report as JSON or as a table."""
    if is_json:
        print_json(report_record(report))
    else:
        print_pretty(report_table(report))


def report_table(report: Report) -> Table:
    """Lay the report out for a person."""
    title = (
        f"{report.model} {report.revision}: {report.clips} held-out clips, frame {report.horizon} of {report.horizon}"
    )
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("measure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it says", style="dim")
    for line in _lines(report):
        table.add_row(line.measure, line.value, line.meaning)
    return table


def _lines(report: Report) -> Iterator[_Line]:
    yield from _quality_lines(report)
    yield from _state_lines(report)
    yield from _spread_lines(report)
    if report.noise_plans is not None:
        yield from _noise_lines(report.noise_plans)
    if report.latency_ms is not None:
        yield _Line("posterior mean over HTTP", f"{report.latency_ms.posterior_mean_p50:.0f} ms", "median of requests")
        yield _Line("ensemble of 8, 8 steps", f"{report.latency_ms.ensemble8_p50:.0f} ms", "median of requests")


def _quality_lines(report: Report) -> Iterator[_Line]:
    copy, single = report.psnr_copy_last, report.psnr_sample
    yield _Line("reconstruction", _db(report.psnr_reconstruction), "encode and decode, nothing predicted: the ceiling")
    yield _Line("copy of the last frame", _db(copy), "the floor: nothing moves")
    yield _Line("one member", _db(single), f"{_signed(single - copy)} on copying")
    for size, value in report.psnr_ensemble.items():
        if size > 1:
            gains = f"{_signed(value - single)} on one member, {_signed(value - copy)} on copying"
            yield _Line(f"mean of {size}", _db(value), gains)
    gap = report.psnr_posterior_mean - report.psnr_ensemble[LARGEST]
    yield _Line("posterior mean", _db(report.psnr_posterior_mean), f"1 evaluation; {_signed(gap)} on mean of {LARGEST}")


def _state_lines(report: Report) -> Iterator[_Line]:
    single = report.psnr_sample
    zero, shuffled = report.psnr_zero_states, report.psnr_shuffled_states
    yield _Line("average states", _db(zero), f"{_signed(zero - single)}: what is lost without the robot's states")
    yield _Line("another clip's states", _db(shuffled), f"{_signed(shuffled - single)}: what wrong states cost")


def _spread_lines(report: Report) -> Iterator[_Line]:
    if report.psnr_in_masks is not None:
        single, largest = report.psnr_in_masks[1], report.psnr_in_masks[LARGEST]
        gain = f"mean of {LARGEST}, {_signed(largest - single)} on one member"
        yield _Line("inside uncertain objects", _db(largest), gain)
    if report.variance_in_masks_over_outside is not None:
        ratio = f"{report.variance_in_masks_over_outside:.1f}x"
        yield _Line("variance inside / outside", ratio, "members differ where the future is open")
    first, last = report.spread_skill[0], report.spread_skill[-1]
    yield _Line("spread / error", f"{first:.2f} .. {last:.2f}", "first to last frame; 1: as unsure as it is wrong")


def _noise_lines(plans: NoisePlanMeasures) -> Iterator[_Line]:
    meaning = f"squared error of the mean against {plans.reference_members} members, {plans.clips} clips"
    for name, errors in (("antithetic", plans.antithetic), ("independent", plans.iid)):
        for size, error in errors.items():
            yield _Line(f"{size} {name} members", f"{error:.2e}", meaning)
    yield _Line("correlation within pairs", f"{plans.pair_correlation:+.2f}", "-1: pairs cancel out wholly")


def _db(value: float) -> str:
    return f"{value:.2f} dB"


def _signed(value: float) -> str:
    return f"{value:+.2f} dB"
