"""Charts are drawn as PNG from plain JSON, the same each time, with labels that do not touch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from foreframe_server.plots import plot_curves, spread_places

CHART = {
    "title": "cost",
    "x_label": "steps",
    "y_label": "nats",
    "series": [
        {"label": "one", "x": [1, 2, 3], "y": [3, 2, 1], "low": [2, 1, 0], "high": [4, 3, 2]},
        {"label": "two", "x": [1, 2, 3], "y": [3, 2.5, 1.0], "line": "dashed", "colour": 0},
    ],
}
VALUES = {
    "x_label": "nats",
    "values": [{"label": "a", "value": 2.0, "low": 1.5, "high": 2.5}, {"label": "b", "value": 3}],
}


def pixels_of(chart, path):
    plot_curves(json.loads(json.dumps(chart)), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_a_chart_is_drawn_into_a_new_folder(tmp_path):
    pixels = pixels_of(CHART, tmp_path / "new" / "chart.png")
    assert pixels.shape[1] > pixels.shape[0] > 400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_panels_stand_beside_each_other(tmp_path):
    one = pixels_of(CHART, tmp_path / "one.png")
    panels = [CHART, {"title": "values", **VALUES}, {**CHART, "x_scale": "log", "ticks": [1, 2, 3]}]
    three = pixels_of({"title": "three", "x_label": "", "note": "n", "panels": panels}, tmp_path / "three.png")
    assert three.shape[1] == pytest.approx(3 * one.shape[1], abs=3)


@pytest.mark.parametrize(
    "change",
    [
        {"title": "other"},
        {"x_label": "other"},
        {"y_label": "other"},
        {"note": "other"},
        {"x_scale": "log"},
        {"series": CHART["series"][:1]},
        {"series": [{**CHART["series"][0], "low": [1, 1, 1]}, CHART["series"][1]]},
        {"series": [CHART["series"][0], {**CHART["series"][1], "line": "solid"}]},
        {"series": [CHART["series"][0], {**CHART["series"][1], "colour": 3}]},
        {"series": [CHART["series"][0], {**CHART["series"][1], "label": "three"}]},
    ],
)
def test_everything_in_a_chart_is_seen(change, tmp_path):
    before, after = pixels_of(CHART, tmp_path / "a.png"), pixels_of({**CHART, **change}, tmp_path / "b.png")
    assert before.shape != after.shape or (before != after).any()


def test_equal_charts_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_curves(CHART, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("ends", [[0.5, 0.5, 0.5], [0.9, 0.1, 0.12, 0.11], [0.0, 1.0], [0.3]])
def test_labels_keep_their_order_and_do_not_touch(ends):
    places = spread_places(np.array(ends), 0.1)
    order = np.argsort(ends, kind="stable")
    assert (np.diff(places[order]) > 0.1 - 1e-9).all()
    assert places.mean() == pytest.approx(np.mean(ends))


def test_labels_with_room_stay_where_they_are():
    np.testing.assert_allclose(spread_places(np.array([0.8, 0.1, 0.4]), 0.1), [0.8, 0.1, 0.4])


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, foreframe_server.plots; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
