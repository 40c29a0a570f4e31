"""The built-in model with and without an adapter: swapped while it serves, and back with the bytes it had."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.adapters import FACTS_KEY, WEIGHTS
from foreframe_engines.bundle import write_manifest
from foreframe_engines.choice import name_machine
from foreframe_engines.episodes import load_clips
from foreframe_server.app import create_app
from foreframe_server.golden_request import GOLDEN_FILE
from foreframe_server.settings import EngineSettings, ModelSettings, Settings

pytestmark = pytest.mark.anyio
LAYER = "transformer.blocks.1.attn1.to_v"


@pytest.fixture
def folder(tmp_path):
    """A folder with the built-in model and an adapter of it."""
    base = Bundle.open(builtin_bundle())
    model = tmp_path / base.contract.model
    shutil.copytree(builtin_bundle(), model / base.contract.revision)
    rows, columns = load_file(builtin_bundle() / WEIGHTS)[f"rollout.{LAYER}.weight"].shape
    rng = np.random.default_rng(1)
    halves = {
        f"{LAYER}.lora_A.weight": 0.3 * rng.standard_normal((2, columns), dtype=np.float32),
        f"{LAYER}.lora_B.weight": 0.3 * rng.standard_normal((rows, 2), dtype=np.float32),
    }
    facts = {"alpha": 2.0, "base_digest": base.digest, "state": None}
    (model / "adapters").mkdir()
    save_file(halves, model / "adapters" / "night.safetensors", {FACTS_KEY: json.dumps(facts)})
    return tmp_path


def build_app(folder):
    return create_app(Settings(engine=EngineSettings(processes=0, num_threads=1), models=ModelSettings(folder=folder)))


@pytest.fixture
def predict(base64_of):
    """Ask a server for one prediction: its revision and its pictures."""
    return partial(_predict, base64_of)


async def _predict(base64_of, client):
    clip, contract = load_clips(builtin_bundle() / "clips.npz")[0], Bundle.open(builtin_bundle()).contract
    count = contract.context_frames
    frames = [base64_of(frame.tobytes()) for frame in clip.frames[:count]]
    camera = {"encoding": "raw_rgb8", "width": 64, "height": 64, "frames": frames}
    body = {
        "observation": {"cameras": {contract.camera.name: camera}, "state": {"values": clip.states[:count].tolist()}},
        "future": {"kind": "state", "values": clip.states[count : count + contract.horizon].tolist()},
        "sampling": {"strategy": "sample", "steps": 2, "seed": 3},
        "cache": "bypass",
    }
    reply = await client.post("/v1/predictions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["revision"], [frame["image"] for frame in reply.json()["frames"]]


async def test_an_adapter_is_swapped_in_and_out_again(folder, serving, predict):
    contract = Bundle.open(builtin_bundle()).contract
    path = f"/admin/models/{contract.model}/load"
    async with serving(build_app(folder)) as client:
        bare = await predict(client)
        loaded = await client.post(path, json={"adapter": "night"})
        assert (loaded.status_code, loaded.json()["adapter"]) == (200, "night"), loaded.text
        revision, adapted = await predict(client)
        assert (revision, adapted != bare[1]) == (f"{contract.revision}-night", True)
        assert (await client.post(path)).json()["adapter"] is None
        assert await predict(client) == bare


async def test_a_damaged_adapter_leaves_the_bare_model_serving(folder, serving, predict):
    contract = Bundle.open(builtin_bundle()).contract
    adapter = folder / contract.model / "adapters" / "night.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-8])
    async with serving(build_app(folder)) as client:
        bare = await predict(client)
        reply = await client.post(f"/admin/models/{contract.model}/load", json={"adapter": "night"})
        assert (reply.status_code, reply.json()["code"]) == (500, "model_fault")
        assert await predict(client) == bare


@pytest.mark.parametrize("has_flipped_weights", [False, True])
async def test_what_is_not_what_it_was_recorded_to_be_never_serves(folder, serving, has_flipped_weights):
    contract = Bundle.open(builtin_bundle()).contract
    bundle = folder / contract.model / contract.revision
    if has_flipped_weights:
        weights = bytearray((bundle / WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (bundle / WEIGHTS).write_bytes(weights)
    else:
        (bundle / GOLDEN_FILE).write_text(json.dumps({"digests": {name_machine(): "0" * 64}}))
        write_manifest(bundle)
    app = build_app(folder)
    async with serving(app) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 500
        assert app.state.host.has_failed
