"""Reports written for people: everything is in them, nothing is fetched, and what says nothing shows no number."""

import re
import xml.etree.ElementTree as ET

import pytest

from foreframe_server.reports.markdown import write_markdown
from foreframe_server.reports.page import write_page
from foreframe_server.reports.samples import Samples
from foreframe_server.reports.svg import Scale, draw_chart

CHART = {
    "title": "Quality <against> latency",
    "x_label": "ms",
    "panels": [
        {
            "title": "curves",
            "x_label": "ms",
            "y_label": "dB",
            "x_scale": "log",
            "series": [
                {
                    "label": "a & b",
                    "x": [10, 100, 1000],
                    "y": [20.0, 25.0, 26.0],
                    "low": [19, 24, 25],
                    "high": [21, 26, 27],
                },
                {"label": "gap", "x": [10, 100], "y": [22.0, float("nan")], "line": "dashed"},
            ],
        },
        {"title": "values", "x_label": "ms", "values": [{"label": "one", "value": 3.0, "low": 2.0, "high": 4.5}]},
    ],
}
FOUND = {
    "bars": [{"measure": "p99 | ms", "value": 12.0, "at_most": 10.0, "at_least": None, "is_met": False}],
    "facts": {"capacity": 3.25, "interval": {"mean": 1.0, "low": 0.5, "high": 1.5}},
    "settings": [{"name": "a", "ms": 1.5}, {"name": "b", "ms": 2.5}],
    "backends": {"x": {"ms": 1.0}, "y": {"ms": 2.0}},
}


def figures(html):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_a_page_holds_all_it_shows(document):
    page = write_page(document([Samples("x", "ms", "lower", (1.0,))], record=FOUND), [CHART])
    assert len(figures(page)) == 2
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)
    for words in (
        "p99 | ms",
        "missed",
        "3.25",
        "1  (0.5 .. 1.5)",
        "two cores",
        "digest",
        "GPU X",
        "abc",
        "&lt;against&gt;",
    ):
        assert words in page, words


def test_records_become_tables(document):
    text = write_markdown(document(record=FOUND))
    assert "| name | ms |" in text
    assert "| x | 1 |" in text
    assert r"p99 \| ms" in text
    assert "header.machine" not in text


@pytest.mark.parametrize("write", [lambda document: write_page(document, [CHART]), write_markdown])
def test_a_run_that_says_nothing_shows_why_and_no_number(document, write):
    text = write(document([Samples("x", "ms", "lower", (1.0,))], record=FOUND, faults=["off schedule"]))
    assert "off schedule" in text
    for words in ("3.25", "p99", "<svg"):
        assert words not in text


def test_curves_are_drawn_where_their_values_are():
    curves, values = figures(draw_chart(CHART))
    lines = [each for each in curves.iter() if each.tag == "polyline"]
    places = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]
    across = [place[0] for place in places]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # decades, on a logarithm
    assert places[0][1] > places[1][1] > places[2][1]  # up is more
    assert len(lines[1].get("points").split()) == 1  # what has no value is left out
    assert "stroke-dasharray" in lines[1].attrib
    assert [each.text for each in values.iter() if each.text == "one"] == ["one"]
    assert curves.get("aria-label")


def test_an_empty_chart_is_drawn_too():
    (empty,) = figures(draw_chart({"x_label": "s", "series": []}))
    assert empty.get("viewBox")


@pytest.mark.parametrize(
    ("low", "high", "is_log"), [(0.0, 1.0, False), (3.0, 3.0, False), (5.0, 900.0, True), (62.0, 190.0, True)]
)
def test_ticks_are_round_and_within(low, high, is_log):
    scale = Scale.of([low, high], 0, 100, is_log=is_log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(0 <= scale.place(tick) <= 100 for tick in ticks)
