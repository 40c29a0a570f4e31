"""The shipped model served on torch gives what it gives on ONNX Runtime, and a device that is not here is refused."""

import numpy as np
import pytest
import structlog
import torch

from foreframe_client import Client
from foreframe_engines import RuntimeUnavailable, builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_server.cli.backends import find_backend
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server


def read(**engine):
    return read_overridden(host="127.0.0.1", port=0, engine=engine)


def test_the_apps_own_way_needs_no_opener():
    assert find_backend(read().engine) is None


def test_torch_serves_what_onnx_runtime_serves(monkeypatch):
    monkeypatch.setattr(structlog, "configure", lambda **_: None)  # this process keeps its logging
    clip, frames = load_clips(builtin_bundle() / "clips.npz")[0], {}
    for backend in ("auto", "torch"):
        settings = read(backend=backend)
        with running_server(settings, find_backend(settings.engine)) as address, Client(address) as client:
            asked = client.predict(clip.frames[:4], clip.states[:4], clip.states[4:], ensemble=2, seed=7, steps=2)
            frames[backend] = asked.frames.astype(int)
            with client.open_session(clip=0) as session:
                assert session.step(clip.states[4:5]).frames.shape == (1, 64, 64, 3)
    assert np.abs(frames["torch"] - frames["auto"]).max() <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"has_cuda_graphs": True}])
def test_what_is_not_here_is_said_at_once(asked):
    with pytest.raises(RuntimeUnavailable, match="CUDA"):
        find_backend(read(backend="torch", **asked).engine)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"device": "cuda"}, "--device and --precision need --backend torch"),
        ({"precision": "bf16"}, "--device and --precision need --backend torch"),
        ({"is_compiled": True}, "IS_COMPILED"),
        ({"has_cuda_graphs": True}, "HAS_CUDA_GRAPHS"),
    ],
)
def test_what_only_torch_heeds_is_refused_without_it(asked, words):
    with pytest.raises(Fault, match=words):
        find_backend(read(**asked).engine)
