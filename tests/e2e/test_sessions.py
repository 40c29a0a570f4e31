"""Sessions over a socket: a real server with the model that comes with it, and both a client and the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from foreframe_client import Client
from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_server.cli.commands import app as cli
from foreframe_server.cli.serving import running_server
from foreframe_server.measures import psnr_db
from foreframe_server.settings import Settings


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0}, engine={"processes": 0})) as address:
        yield address


@pytest.fixture(scope="module")
def clip():
    return load_clips(builtin_bundle() / "clips.npz")[0]


def test_a_session_from_a_clip_has_the_bytes_of_predictions_and_follows_what_happened(address, clip):
    frames, states = clip.frames[:4], clip.states[:4]
    with Client(address) as client, client.open_session(clip=0, seed=1) as session:
        made = []
        for row in clip.states[4:]:
            step = session.step(row[None], strategy="posterior_mean")
            alone = client.predict(frames, states, row[None], strategy="posterior_mean", seed=step.seed, cache="bypass")
            assert np.array_equal(step.frames, alone.frames)
            frames = np.concatenate([frames, step.frames])[-4:]
            states = np.concatenate([states, row[None]])[-4:]
            made.append(step.frames[0])
        compared = session.push(clip.frames[4:], clip.states[4:])

    truth = clip.frames[4:]
    assert [each.psnr_db for each in compared] == pytest.approx(psnr_db(np.stack(made), truth))
    assert np.mean([each.psnr_db for each in compared]) > psnr_db(clip.frames[3:4].repeat(8, axis=0), truth).mean()


def test_the_bench_says_that_bytes_are_equal_and_what_forks_hold(tmp_path):
    out = tmp_path / "sessions.json"
    result = CliRunner().invoke(
        cli, ["bench", "sessions", "--rounds", "2", "--steps", "20", "--forks", "3", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output

    record = json.loads(out.read_text())
    ways = [record[name] for name in ("posterior_mean_1_rows", "sample_1_rows", "sample_8_rows")]
    assert [way["equal_bytes"] for way in ways] == [3, 3, 3]
    assert all(way["wall_ratio"] > 0 for way in ways)
    assert record["long_session"]["fork"]["extra_ratio"] <= 0.01
    assert len(record["psnr"]["per_step_db"]) == 8
