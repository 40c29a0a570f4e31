import base64
import io

import numpy as np
import pytest
from PIL import Image

from foreframe_engines.bundle import write_manifest
from foreframe_engines.episodes import Clip, save_clips
from foreframe_server.session_clips import ShippedClips

pytestmark = pytest.mark.anyio


def clip_of(seed, *, length=12, size=8, dim=3):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length, size, size, 3), np.uint8)
    return Clip(seed, 5, frames, rng.random((length, dim), np.float32), np.zeros((length, size, size), np.uint8))


@pytest.fixture
def ship(app, client, tmp_path):
    """Let the toy come with these clips."""

    def put(*clips):
        with (tmp_path / "clips.npz").open("wb") as file:
            save_clips(file, list(clips))
        write_manifest(tmp_path)
        app.state.host.model.clips = ShippedClips(tmp_path)

    return put


async def test_a_model_without_clips_lists_none_and_has_none(client):
    assert (await client.get("/v1/models/toy/clips")).json() == {"clips": []}
    reply = await client.get("/v1/models/toy/clips/0")
    assert (reply.status_code, reply.json()["code"]) == (409, "capability_missing")


async def test_clips_are_listed_with_a_picture_each(client, ship):
    ship(clip_of(1), clip_of(2))

    clips = (await client.get("/v1/models/toy/clips")).json()["clips"]

    assert [(clip["index"], clip["seed"], clip["start"]) for clip in clips] == [(0, 1, 5), (1, 2, 5)]
    picture = Image.open(io.BytesIO(base64.b64decode(clips[1]["picture"]["data"])))
    assert (picture.format, picture.size) == ("JPEG", (8, 8))


async def test_a_clip_loses_nothing(client, ship):
    ship(clip_of(1), clip_of(2))

    clip = (await client.get("/v1/models/toy/clips/1")).json()

    frames = [np.asarray(Image.open(io.BytesIO(base64.b64decode(frame["data"])))) for frame in clip["frames"]]
    assert np.array_equal(np.stack(frames), clip_of(2).frames)
    assert np.array_equal(np.float32(clip["states"]), clip_of(2).states)
    assert clip["context_frames"] == 4


async def test_a_number_that_there_is_no_clip_of_is_refused(client, ship):
    ship(clip_of(1))

    reply = await client.get("/v1/models/toy/clips/1")

    assert (reply.status_code, reply.json()["errors"][0]["expected"]) == (422, "0..0")
    assert (await client.get("/v1/models/other/clips/0")).status_code == 404


async def test_clips_that_do_not_fit_the_model_are_none(client, ship):
    ship(clip_of(1, size=9))

    assert (await client.get("/v1/models/toy/clips")).json() == {"clips": []}
