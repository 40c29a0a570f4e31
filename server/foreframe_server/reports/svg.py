"""Charts (see `plots`) as inline SVG, without matplotlib: for pages that hold everything they show."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from foreframe_server.plots import COLOURS, Chart, Curve, Panel, Value, spread_places

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 170, 28, 46
_NAMES = 210
"""Pixels on the left for the names of named values."""
_PITCH = 13
_ROW = 22
_DASHES = {"solid": "", "dashed": ' stroke-dasharray="6 3"', "dotted": ' stroke-dasharray="2 3"'}
_TICKS = 5
_TEXT = 'font-size="11" fill="currentColor"'


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values between `low` and `high` to pixels, by their logarithm where that is asked for."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, is_log: bool = False) -> "Scale":
        """Fit some values with a little air around them; a logarithm leaves out what it has none of."""
        known = [value for value in values if value > 0 or not is_log] or [1.0]
        low, high = min(known), max(known)
        if is_log:
            return cls(low / 1.1, high * 1.1, start, end, is_log=True)
        air = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low - air, high + air, start, end)

    def place(self, value: float) -> float:
        """Return a value's pixel."""
        low, high, at = (math.log(max(each, 1e-300)) if self.is_log else each for each in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return round values to mark: 1, 2 or 5 times a power of ten."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        else:
            raw = (self.high - self.low) / _TICKS
            power = 10.0 ** math.floor(math.log10(raw))
            step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
            first = math.ceil(self.low / step)
            marks = [(first + index) * step for index in range(2 * _TICKS)]
        within = [mark for mark in marks if self.low <= mark <= self.high]
        # Less than a decade may have no such mark.
        return within if len(within) > 1 or not self.is_log else replace(self, is_log=False).ticks()


def draw_chart(chart: Chart) -> str:
    """Draw a chart as a figure: its title, its note, and every panel as an SVG."""
    panels = "".join(map(_draw_panel, chart.get("panels") or [chart]))
    note = f'<br><span class="note">{escape(chart["note"])}</span>' if "note" in chart else ""
    return f"<figure><figcaption>{escape(chart.get('title', ''))}{note}</figcaption>{panels}</figure>"


def _draw_panel(panel: Panel) -> str:
    values = panel.get("values")
    height = _TOP + _BOTTOM + _ROW * len(values) if values else _HEIGHT
    parts = _named_values(panel, values, height) if values else _curves(panel)
    title = escape(panel.get("title", ""))
    label = escape(f"{panel.get('title', '')} {panel['x_label']} {panel.get('y_label', '')}".strip())
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif">{_text(8, 16, title, "font-weight=" + chr(34) + "600" + chr(34))}'
        f"{''.join(parts)}</svg>"
    )


def _curves(panel: Panel) -> Iterator[str]:
    series = [_defined(curve) for curve in panel.get("series", ())]
    series = [curve for curve in series if curve["x"]]
    xs = [value for curve in series for value in curve["x"]] or [0.0, 1.0]
    ys = [value for curve in series for name in ("y", "low", "high") for value in _list(curve, name)] or [0.0, 1.0]
    x = Scale.of(xs, _LEFT, _WIDTH - _RIGHT, is_log=panel.get("x_scale") == "log")
    y = Scale.of(ys, _HEIGHT - _BOTTOM, _TOP)
    yield from _x_axis(x, panel, _HEIGHT)
    for tick in y.ticks():
        yield _line((_LEFT, y.place(tick)), (_WIDTH - _RIGHT, y.place(tick)))
        yield _text(_LEFT - 6, y.place(tick) + 4, f"{tick:.6g}", 'text-anchor="end"')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    y_label = escape(panel.get("y_label", ""))
    yield _text(14, middle, y_label, f'text-anchor="middle" transform="rotate(-90 14 {middle})"')
    for index, curve in enumerate(series):
        yield from _curve(curve, COLOURS[curve.get("colour", index) % len(COLOURS)], x.place, y.place)
    yield from _end_labels(series, y)


def _defined(curve: Curve) -> Curve:
    """Leave out places without a value."""
    kept = [index for index, value in enumerate(curve["y"]) if value is not None and math.isfinite(value)]
    chosen: Curve = {**curve, "x": [curve["x"][index] for index in kept], "y": [curve["y"][index] for index in kept]}
    if "low" in curve and "high" in curve:
        chosen["low"] = [curve["low"][index] for index in kept]
        chosen["high"] = [curve["high"][index] for index in kept]
    return chosen


def _list(curve: Curve, name: str) -> Sequence[float]:
    values = curve.get(name, ())
    return values if isinstance(values, Sequence) and not isinstance(values, str) else ()


def _x_axis(scale: Scale, panel: Panel, height: float) -> Iterator[str]:
    bottom = height - _BOTTOM
    for tick in panel.get("ticks") or scale.ticks():
        place = scale.place(tick)
        yield _line((place, _TOP), (place, bottom))
        yield _text(place, bottom + 15, f"{tick:.6g}", 'text-anchor="middle"')
    yield _text((scale.start + scale.end) / 2, height - 10, escape(panel["x_label"]), 'text-anchor="middle"')


def _curve(curve: Curve, colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    places = [f"{x(at)},{y(value)}" for at, value in zip(curve["x"], curve["y"], strict=True)]
    if "low" in curve and "high" in curve:
        upper = [f"{x(at)},{y(value)}" for at, value in zip(curve["x"], curve["high"], strict=True)]
        lower = [f"{x(at)},{y(value)}" for at, value in zip(curve["x"], curve["low"], strict=True)]
        yield f'<polygon points="{" ".join([*upper, *lower[::-1]])}" fill="{colour}" fill-opacity="0.15"/>'
    dashes = _DASHES[curve.get("line", "solid")]
    yield f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
    for place in places:
        across, down = place.split(",")
        yield f'<circle cx="{across}" cy="{down}" r="2.6" fill="{colour}"/>'


def _end_labels(series: Sequence[Curve], y: Scale) -> Iterator[str]:
    if not series:
        return
    ends = np.array([y.place(curve["y"][-1]) for curve in series])
    for index, (curve, place) in enumerate(zip(series, spread_places(ends, _PITCH), strict=True)):
        colour = COLOURS[curve.get("colour", index) % len(COLOURS)]
        yield (
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{place + 4:.1f}" font-size="11" fill="{colour}">'
            f"{escape(curve['label'])}</text>"
        )


def _named_values(panel: Panel, values: Sequence[Value], height: float) -> Iterator[str]:
    x = Scale.of([0.0, *(each for value in values for each in (value["value"], value.get("high", 0.0)))], _NAMES, 490)
    yield from _x_axis(x, panel, height)
    for index, value in enumerate(values):
        yield from _named_value(value, x, _TOP + _ROW * (index + 0.5))


def _named_value(value: Value, x: Scale, down: float) -> Iterator[str]:
    colour = COLOURS[value.get("colour", 0) % len(COLOURS)]
    yield _text(_NAMES - 10, down + 4, escape(value["label"]), 'text-anchor="end"')
    if "low" in value and "high" in value:
        yield _line(
            (x.place(value["low"]), down), (x.place(value["high"]), down), f'stroke="{colour}" stroke-width="5"'
        )
    yield f'<circle cx="{x.place(value["value"])}" cy="{down}" r="4" fill="{colour}"/>'
    yield _text(x.place(max(value["value"], value.get("high", 0.0))) + 8, down + 4, f"{value['value']:.4g}")


def _line(
    start: tuple[float, float], end: tuple[float, float], look: str = 'stroke="currentColor" stroke-opacity="0.15"'
) -> str:
    return f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" {look}/>'


def _text(across: float, down: float, content: str, look: str = "") -> str:
    """Write what is escaped already."""
    return f'<text x="{across}" y="{down}" {_TEXT} {look}>{content}</text>'
