"""The demo as a newcomer starts it: one command in a process of its own."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_server.codec.pictures import Size
from foreframe_server.codec.video import decode_mp4

CLIPS = 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished process and the folder it wrote."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "foreframe_server", "demo", "--clips", str(CLIPS), "--out", str(out), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREFRAME_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done, out


def test_it_prints_the_report_that_it_writes(demo):
    done, out = demo
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text())


def test_it_says_on_standard_error_where_everything_is(demo):
    done, out = demo
    assert "http://127.0.0.1:" in done.stderr
    for name in ("contact_sheet.png", "rollout.mp4", "report.json"):
        assert str(out / name) in done.stderr


def test_the_report_is_of_the_first_shipped_clips(demo):
    done, _ = demo
    report = json.loads(done.stdout)
    clips = load_clips(builtin_bundle() / "clips.npz")[:CLIPS]
    errors = [np.square(clip.frames[3].astype(float) - clip.frames[-1].astype(float)).mean() for clip in clips]
    expected = np.mean([10 * math.log10(255**2 / error) for error in errors])
    assert report["clips"] == CLIPS
    assert report["psnr_copy_last"] == pytest.approx(expected, abs=1e-3)
    assert all(math.isfinite(value) for value in report["psnr_ensemble"].values())
    assert min(report["latency_ms"].values()) > 0


def test_the_contact_sheet_holds_the_true_last_frames(demo):
    _, out = demo
    with Image.open(out / "contact_sheet.png") as picture:
        sheet = np.asarray(picture)
    clips = load_clips(builtin_bundle() / "clips.npz")[: CLIPS + 1]
    tiles = [clip.frames[-1].repeat(3, axis=0).repeat(3, axis=1) for clip in clips]
    assert [holds(sheet, tile) for tile in tiles] == [True] * CLIPS + [False]


def holds(sheet, tile):
    """Whether a picture stands somewhere on the sheet, pixel for pixel."""
    height, width = tile.shape[:2]
    corners = np.argwhere((sheet[: 1 - height, : 1 - width] == tile[0, 0]).all(axis=-1))
    return any(np.array_equal(sheet[y : y + height, x : x + width], tile) for y, x in corners)


def test_the_film_can_be_played(demo):
    _, out = demo
    frames = decode_mp4((out / "rollout.mp4").read_bytes(), 100, Size(4000, 4000), max_pad_pixels=4000 * 4000)
    assert len(frames) >= CLIPS * 12
    assert frames[0].shape[1] > 4 * 256
