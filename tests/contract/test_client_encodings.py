"""Frames leave the client as its user chose, and arrive: the server's own codec reads them back."""

import asyncio
import builtins
import importlib

import httpx
import numpy as np
import pytest

from foreframe_client import AsyncClient, Client, InvalidRequest, RetryPolicy, ServerError
from foreframe_client._encodings import check_encoding, write_frames
from foreframe_client._msgpack import decode, encode
from foreframe_engines import CameraSpec
from foreframe_server.codec.documents import read_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.observation import read_clip
from foreframe_server.codec.validation import validate
from foreframe_server.schemas import CameraClip

MODEL = {
    "id": "toy", "family": "toy", "revision": "1", "cameras": [{"name": "head", "height": 32, "width": 32}],
    "context_frames": 5, "horizon": 5, "fps": 10.0, "state_schema": "toy", "state_dim": 3,
    "capabilities": ["predict", "likelihood"],
}  # fmt: skip
SMOOTH = np.tile(np.linspace(20, 230, 32).astype(np.uint8)[None, None, :, None], (5, 32, 1, 3))


def arrived(frames, encoding):
    clip = validate(CameraClip, read_document(encode(write_frames(frames, encoding)), Media.MSGPACK, max_values=1000))
    camera = CameraSpec("head", *frames.shape[1:3])
    return read_clip(clip, camera, range(len(frames), len(frames) + 1), "", max_picture_pixels=0).frames


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_frames_arrive_as_they_are(encoding):
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)

    np.testing.assert_array_equal(arrived(frames, encoding), frames)


@pytest.mark.parametrize("encoding", ["jpeg", "mp4"])
def test_small_frames_arrive_nearly_as_they_are(encoding):
    sent = write_frames(SMOOTH, encoding)

    assert np.abs(arrived(SMOOTH, encoding).astype(int) - SMOOTH).max() <= 8
    assert len(encode(sent)) < SMOOTH.nbytes / 2


def test_a_clip_of_an_odd_size_is_refused():
    with pytest.raises(InvalidRequest, match="33x32"):
        write_frames(np.zeros((2, 32, 33, 3), np.uint8), "mp4")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_says_at_once_what_it_cannot_send(kind):
    with pytest.raises(InvalidRequest, match="raw, png, jpeg, mp4"):
        kind(encoding="gif")


@pytest.mark.parametrize("encoding", ["png", "jpeg", "mp4"])
def test_a_missing_package_is_named_by_the_extra_that_brings_it(monkeypatch, encoding):
    def refuse(name, *_):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)

    with pytest.raises(InvalidRequest, match=r"foreframe-client\[pictures\]"):
        check_encoding(encoding)
    assert check_encoding("raw") == "raw"


def test_raw_needs_no_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        assert name.split(".")[0] not in ("PIL", "av")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)

    assert write_frames(SMOOTH)["encoding"] == "raw_rgb8"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_call_sends_frames_as_the_client_was_told(kind):
    bodies = []

    def answer(request):
        if request.method == "GET":
            return httpx.Response(200, json={"models": [MODEL]})
        bodies.append(decode(request.content))
        return httpx.Response(503)

    client = kind(encoding="jpeg", transport=httpx.MockTransport(answer), retry=RetryPolicy(max_retries=0))
    states = np.zeros((5, 3), np.float32)
    calls = {
        "predict": lambda: client.predict(SMOOTH, states, states),
        "observe": lambda: client.observe(SMOOTH, states),
        "likelihood": lambda: client.likelihood(SMOOTH, states, SMOOTH, states),
    }
    for call in calls.values():
        with pytest.raises(ServerError):
            finish(call)

    clips = [body["observation"]["cameras"]["head"] for body in bodies] + [bodies[-1]["target"]]
    assert [clip["encoding"] for clip in clips] == ["jpeg"] * 4
    assert all(len(clip["frames"]) == len(SMOOTH) for clip in clips)


def finish(call):
    """Make a call of either client."""
    answer = call()
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
