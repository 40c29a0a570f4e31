"""What came of planning, as a table, a file and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.table import Table

from foreframe_server.cli.console import format_json, print_note
from foreframe_server.codec.pictures import encode_png
from foreframe_server.experiments.plans import GoalResult, PlansReport
from foreframe_server.intervals import Interval
from foreframe_server.pictures import Column, Group, Tile, tile_sheet

_SHEET_GOALS, _ZOOM = 8, 3


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Pictures of one goal: before, as wanted, and what each strategy led to."""

    start: UInt8[np.ndarray, "h w 3"]
    goal: UInt8[np.ndarray, "h w 3"]
    reached: Mapping[str, UInt8[np.ndarray, "h w 3"]]


def plans_table(report: PlansReport, model: str) -> Table:
    """Lay the strategies out for a person; ratios and successes with their 95 % intervals."""
    title = (
        f"{model}: {report.goals} goals, {_cm(report.start_m)} away at first, {_cm(report.random_m)} by random plans"
    )
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("strategy", "ends away", "median", "of random", "success", "calls", "s"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for name, found in report.strategies.items():
        ratio, share = found.ratio_to_random, found.success
        table.add_row(
            name,
            _cm(found.distance_m),
            f"{100 * found.median_m:.1f} cm",
            f"{ratio.mean:.2f} ({ratio.low:.2f}..{ratio.high:.2f})",
            f"{share.mean:.0%} ({share.low:.0%}..{share.high:.0%})",
            str(found.score_calls),
            f"{found.seconds:.0f}",
        )
    return table


def _cm(metres: Interval) -> str:
    return f"{100 * metres.mean:.1f} cm"


def write_plans(out: Path, record: Mapping[str, object], sheet: UInt8[np.ndarray, "height width 3"]) -> None:
    """Write a record as .json and a picture beside it as .png."""
    picture = out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(format_json(record) + "\n", encoding="utf-8")
    picture.write_bytes(encode_png(sheet))
    print_note(f"wrote {out} and {picture}")


def draw_plans(done: Sequence[tuple[GoalResult, Views]], best: str, model: str) -> UInt8[np.ndarray, "height width 3"]:
    """Show the first goals as rows: before, as wanted, and where the best strategy led."""
    columns = [
        Column("start", Group.SEEN),
        Column("goal", Group.WANTED),
        Column(f"after planning, {best}", Group.HAPPENED),
    ]
    rows = [_row(result, views, best) for result, views in done[:_SHEET_GOALS]]
    notes = ("Under each picture: how far the hand is from where the goal picture was taken.",)
    return tile_sheet(columns, rows, title=f"{model}: plans carried out in the simulator", notes=notes)


def _row(result: GoalResult, views: Views, best: str) -> list[Tile]:
    (end_m,) = (attempt.distance_m for attempt in result.attempts if attempt.strategy == best)
    return [
        Tile(_enlarge(views.start), f"{100 * result.start_m:.1f} cm, {result.hand} hand"),
        Tile(_enlarge(views.goal), f"random plans: {100 * result.random_m:.1f} cm"),
        Tile(_enlarge(views.reached[best]), f"{100 * end_m:.1f} cm"),
    ]


def _enlarge(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
    return picture.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
