"""`plan` as a person calls it: in a process of its own, for the simulator chooses its OpenGL when it is imported."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
from PIL import Image

from foreframe_server.cli.faults import Fault
from foreframe_server.cli.gl import choose_gl

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("mujoco is not installed", allow_module_level=True)


@pytest.fixture
def renderer():
    """The OpenGL that works here; `MUJOCO_GL` is put back afterwards."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MUJOCO_GL", raising=False)
        try:
            return choose_gl()
        except Fault:
            pytest.skip("no OpenGL renders here")


def plan(*arguments, renderer):
    command = [sys.executable, "-m", "foreframe_server", "plan", *map(str, arguments)]
    environment = {**os.environ, "MUJOCO_GL": renderer}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_goal_is_planned_for_and_reported(renderer, tmp_path):
    out = tmp_path / "plans" / "plan.json"
    size = ("--goals", 2, "--candidates", 3, "--rounds", 2, "--strategy", "posterior_mean", "--seed", 5)
    done = plan(*size, "--out", out, "--json", renderer=renderer)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert json.loads(out.read_text()) == record
    assert (record["goals"], record["candidates"], record["rounds"], record["seed"]) == (2, 3, 2, 5)
    found = record["strategies"]["posterior_mean"]
    assert list(record["strategies"]) == [record["best_strategy"]] == ["posterior_mean"]
    assert (found["score_calls"], found["seconds"] > 0) == (4, True)
    assert [goal["seed"] for goal in record["per_goal"]] == [8_000_005, 8_000_006]
    for goal in record["per_goal"]:
        assert 0.0 < goal["attempts"][0]["distance_m"] < 1.0
        assert 0.0 < goal["random_m"] < 1.0
        assert all(math.isfinite(cost) for cost in goal["attempts"][0]["best_costs"])
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 3 * 3 * 64
        assert picture.height > 2 * 3 * 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strategy", "guess"), "posterior_mean"),
        (("--out", "plan.txt"), ".json"),
        (("--candidates", "1"), "candidates"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments, words, run):
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_a_server_that_is_not_there_is_said_in_one_line(renderer):
    done = plan("--url", "http://127.0.0.1:1", "--goals", "1", renderer=renderer)
    assert done.returncode == 3, done.stderr
    assert "not reached" in done.stderr
