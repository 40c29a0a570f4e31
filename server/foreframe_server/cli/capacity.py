"""`foreframe capacity`: how many devices fleets of robots need, as a table and a chart."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from foreframe_engines import Bundle, builtin_bundle
from foreframe_server.capacity.costs import Costs, CostsError, costs_from_json
from foreframe_server.capacity.plans import Fleet, Plan, Planner, Unservable
from foreframe_server.capacity.simulation import Rules
from foreframe_server.cli.console import format_json, print_json, print_note, print_pretty
from foreframe_server.cli.faults import Fault
from foreframe_server.load.traces import Ask
from foreframe_server.plots import Chart, Curve, plot_curves

_COLUMNS = ("rate Hz", "robots", "devices", "robots\na device", "members", "misses", "p50 ms", "p99 ms", "busy")


@dataclass(frozen=True, slots=True)
class Fleets:
    """The fleets to plan for: every rate with every number of robots. speedup: of the device over the measured one."""

    robots: Sequence[int]
    rates_hz: Sequence[float]
    ask: Ask
    min_members: float
    speedup: float = 1.0
    seconds: float = 20.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    rate_hz: float
    plan: Plan


def run_capacity(costs_file: Path, bundle: Path | None, fleets: Fleets, out: Path | None, *, is_json: bool) -> None:
    """Plan for every fleet and show the plans. Raises Fault for a file that holds no costs, BundleError."""
    contract = Bundle.open(bundle or builtin_bundle()).contract
    costs = _read_costs(costs_file).sped_up(fleets.speedup)
    planner = Planner(contract, costs, Rules(contract.horizon), fleets.seconds, fleets.seed)
    lines = list(_plan(planner, fleets))
    record = {"experiment": "capacity", "fleets": asdict(fleets), "costs": costs.to_json(), "plans": _rows(lines)}
    if is_json:
        print_json(record)
    else:
        print_pretty(_table(lines))
    if out is not None:
        out.write_text(format_json(record) + "\n", encoding="utf-8")
        plot_curves(_chart(lines, fleets), out.with_suffix(".png"))
        print_note(f"wrote {out} and its chart")


def _read_costs(path: Path) -> Costs:
    try:
        return costs_from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fault(f"{path} cannot be read: {error.strerror}") from error
    except (CostsError, UnicodeDecodeError) as error:
        raise Fault(f"{path}: {error}") from error


def _plan(planner: Planner, fleets: Fleets) -> Iterator[_Line]:
    for rate_hz in fleets.rates_hz:
        for robots in fleets.robots:
            print_note(f"{robots} robots at {rate_hz:g} Hz ...")
            try:
                yield _Line(rate_hz, planner.plan(Fleet(robots, rate_hz, fleets.ask, fleets.min_members)))
            except Unservable as error:
                raise Fault(f"{rate_hz:g} Hz: {error}") from error


def _rows(lines: Sequence[_Line]) -> list[dict[str, object]]:
    return [{"rate_hz": line.rate_hz, **asdict(line.plan)} for line in lines]


def _table(lines: Sequence[_Line]) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        plan, latency = line.plan, line.plan.latency_ms
        times = ("-", "-") if latency is None else (f"{latency.p50:.0f}", f"{latency.p99:.0f}")
        table.add_row(
            f"{line.rate_hz:g}",
            str(plan.robots),
            str(plan.devices),
            f"{plan.robots / plan.devices:.3g}",
            f"{plan.members:.2f}",
            f"{plan.misses:.1%}",
            *times,
            f"{plan.busy_ratio:.0%}",
        )
    return table


def _chart(lines: Sequence[_Line], fleets: Fleets) -> Chart:
    curves = [_curve(rate_hz, [line.plan for line in lines if line.rate_hz == rate_hz]) for rate_hz in fleets.rates_hz]
    return Chart(
        title="Robots that one device serves",
        x_label="robots of the fleet",
        y_label="robots a device",
        x_scale="log",
        series=curves,
        note=f"simulated; mean members at least {fleets.min_members:g}, misses at most 1 %",
    )


def _curve(rate_hz: float, plans: Sequence[Plan]) -> Curve:
    robots = [float(plan.robots) for plan in plans]
    return Curve(label=f"{rate_hz:g} Hz", x=robots, y=[plan.robots / plan.devices for plan in plans])
