"""Charts of experiments: panels of curves or of named values, with intervals, labelled where the eye is.

A chart is plain JSON, so anything that writes JSON can be drawn. Needs matplotlib, which is imported when a chart is
drawn. Colours: Okabe and Ito, "Color universal design", 2008; told apart by colour-blind people and in print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(TypedDict):
    """One line of a panel. low, high: its interval. Curves that share a `colour` number share a colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: NotRequired[Sequence[float]]
    high: NotRequired[Sequence[float]]
    colour: NotRequired[int]
    line: NotRequired[Literal["solid", "dashed", "dotted"]]


class Value(TypedDict):
    """One named value of a panel, with its interval."""

    label: str
    value: float
    low: NotRequired[float]
    high: NotRequired[float]
    colour: NotRequired[int]


class Panel(TypedDict):
    """Either curves (`series`) or named values (`values`) over an axis with its unit. ticks: places on the x axis."""

    x_label: str
    y_label: NotRequired[str]
    title: NotRequired[str]
    series: NotRequired[Sequence[Curve]]
    values: NotRequired[Sequence[Value]]
    x_scale: NotRequired[Literal["linear", "log"]]
    ticks: NotRequired[Sequence[float]]


class Chart(Panel):
    """A title and one panel, or several beside each other in `panels`. note: what it was measured on."""

    panels: NotRequired[Sequence[Panel]]
    note: NotRequired[str]


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7f7f7f", "#000000")
_TEXT, _FAINT = "#222222", "#d9d9d9"
_PANEL_WIDTH_IN, _HEIGHT_IN, _VALUE_HEIGHT_IN = 5.6, 4.2, 0.36
_DPI = 130
_TITLE_PT, _PANEL_PT, _TEXT_PT, _LABEL_PT = 13, 11, 10, 9
_LABEL_PITCH = 1.35
_STYLES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.5))}
_POINTS_IN = 72
_KEPT = 0.8
"""What the layout leaves of an axes' height, about."""


def plot_curves(report: Chart, path: Path) -> None:
    """Draw a chart as a PNG. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - only who draws needs it

    panels = report.get("panels") or [report]
    figure = _open_figure(panels)
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel, is_titled="panels" in report)
    _write_heading(figure, report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _open_figure(panels: Sequence[Panel]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only who draws needs it

    most = max(len(panel.get("values", ())) for panel in panels)
    height = max(_HEIGHT_IN, 1.6 + _VALUE_HEIGHT_IN * most)
    return Figure(figsize=(_PANEL_WIDTH_IN * len(panels), height), layout="constrained", facecolor="white")


def _write_heading(figure: Figure, report: Chart) -> None:
    heading = report.get("title", "")
    figure.suptitle(heading, x=0.012, ha="left", fontsize=_TITLE_PT, fontweight="bold", color=_TEXT)
    if note := report.get("note"):
        figure.supxlabel(note, x=0.012, ha="left", fontsize=_LABEL_PT, color="#666666")


def _draw_panel(axes: Axes, panel: Panel, *, is_titled: bool) -> None:
    _quieten(axes)
    axes.set_xlabel(panel["x_label"], fontsize=_TEXT_PT, color=_TEXT)
    if is_titled:
        axes.set_title(panel.get("title", ""), loc="left", fontsize=_PANEL_PT, color=_TEXT)
    if values := panel.get("values"):
        _draw_values(axes, values)
        return
    axes.set_ylabel(panel.get("y_label", ""), fontsize=_TEXT_PT, color=_TEXT)
    _set_x_axis(axes, panel)
    series = panel.get("series", ())
    colours = [_colour(curve, index) for index, curve in enumerate(series)]
    for curve, colour in zip(series, colours, strict=True):
        _draw_curve(axes, curve, colour)
    _label_ends(axes, series, colours)


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=_LABEL_PT, colors="#555555", length=3)
    axes.grid(visible=True, color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _set_x_axis(axes: Axes, panel: Panel) -> None:
    axes.set_xscale(panel.get("x_scale", "linear"))
    if ticks := panel.get("ticks"):
        axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)


def _colour(item: Mapping[str, object], index: int) -> str:
    chosen = item.get("colour", index)
    return COLOURS[(chosen if isinstance(chosen, int) else index) % len(COLOURS)]


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    style = _STYLES[curve.get("line", "solid")]
    axes.plot(
        curve["x"], curve["y"], color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=3.5, clip_on=False
    )
    if "low" in curve and "high" in curve:
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)


def _label_ends(axes: Axes, series: Sequence[Curve], colours: Sequence[str]) -> None:
    """Write each curve's name to the right of all, as high as it ends; names that would touch move apart."""
    if not series:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # names move in this range, so it may not change any more
    height_pt = axes.bbox.height / axes.figure.dpi * _POINTS_IN * _KEPT
    ends = np.array([(curve["y"][-1] - low) / (high - low) for curve in series])
    places = spread_places(ends, _LABEL_PT * _LABEL_PITCH / height_pt)
    for curve, colour, end, place in zip(series, colours, ends, places, strict=True):
        axes.annotate(
            curve["label"],
            xy=(1.0, float(end)),
            xytext=(1.05, float(place)),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=_LABEL_PT,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def spread_places(places: np.ndarray, pitch: float) -> np.ndarray:
    """Move numbers apart to at least the pitch, keeping their order and as near as may be to where they were."""
    order = np.argsort(places, kind="stable")
    steps = pitch * np.arange(len(places))
    # With the pitch taken off, "at least a pitch apart" is "not descending": pool neighbours that descend.
    pools: list[list[float]] = []
    for value in places[order] - steps:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    moved = np.empty(len(places))
    moved[order] = flat + steps
    return moved


def _draw_values(axes: Axes, values: Sequence[Value]) -> None:
    heights = list(range(len(values)))[::-1]
    for height, value in zip(heights, values, strict=True):
        _draw_value(axes, value, height)
    axes.set_yticks(heights, [value["label"] for value in values], fontsize=_TEXT_PT, color=_TEXT)
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.05)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_value(axes: Axes, value: Value, height: int) -> None:
    place, colour = value["value"], COLOURS[value.get("colour", 0) % len(COLOURS)]
    axes.plot([0, place], [height, height], color=_FAINT, linewidth=1, zorder=1)
    if "low" in value and "high" in value:
        axes.plot([value["low"], value["high"]], [height, height], color=colour, linewidth=5, alpha=0.35)
    axes.plot(place, height, "o", color=colour, markersize=5)
    axes.annotate(
        f"{place:.4g}",
        (max(place, value.get("high", place)), height),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=_LABEL_PT,
        color=_TEXT,
    )
