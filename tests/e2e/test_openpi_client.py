"""openpi's client as it is published, in an environment of its own, against a real server."""

import json
import os
import subprocess
import threading
from itertools import pairwise
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

PATIENCE_S = 60
ROBOT = Path(__file__).with_name("openpi_robot.py")
OWN = Path(__file__).parents[2] / ".venv/openpi/bin/python"
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
STATES = RNG.normal(size=(6, 3)).astype(np.float32)
ACTIONS = RNG.normal(size=(8, 3)).astype(np.float32)


class AttentiveToyEngine(ToyRolloutEngine):
    """A toy whose future depends on every frame and every state of its context, newer ones more."""

    def encode(self, context):
        latents = super().encode(context)
        latents[-1] = np.tensordot(self.weights(), latents, 1)
        return latents

    def condition(self, context_latents, states):
        past = self.weights() @ states[: self.contract.context_frames]
        return super().condition(context_latents, states + past)

    def weights(self):
        weights = np.arange(1, self.contract.context_frames + 1, dtype=np.float32)
        return weights / weights.sum()


@pytest.fixture(scope="module")
def python():
    """The interpreter of the client's environment."""
    found = Path(os.environ.get("OPENPI_PYTHON", OWN))
    if not found.exists():
        pytest.skip("openpi-client is not installed: `make .venv/openpi`, or name its interpreter in OPENPI_PYTHON")
    return found


class Robot:
    """The client's process while a block runs; afterwards `frames` and `facts` are what came."""

    def __init__(self, python, address, folder, scenario, **sent):
        self.folder = folder
        np.savez(folder / "sent.npz", **sent)
        self.process = subprocess.Popen(
            [python, ROBOT, address.removeprefix("http://"), folder, scenario],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert kind is not None or self.process.returncode == 0, errors
        if kind is None:
            self.frames = np.load(self.folder / "came.npz")["frames"]
            self.facts = json.loads((self.folder / "told.json").read_text())

    def waited(self):
        """What it waits with."""
        return self.process.stdout.readline().strip()

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def play(python, tmp_path):
    """Let the robot play a scenario, with what it sends unless that is given."""

    def play(address, scenario, **sent):
        return Robot(
            python, address, tmp_path, scenario, **{"frames": FRAMES, "states": STATES, "actions": ACTIONS, **sent}
        )

    return play


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0}), given(AttentiveToyEngine())) as address:
        yield address


def predict(address, rows, **fields):
    """Every frame of the same request over HTTP."""
    request = {
        "observation": {"cameras": {"head": {"frames": FRAMES[rows]}}, "state": {"values": STATES[rows]}},
        "future": {"values": ACTIONS}, "sampling": {"seed": 7, "steps": 2}, "return": {"encoding": "raw"}, **fields,
    }  # fmt: skip
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    body = msgpack.packb(request, default=map_for_msgpack)
    reply = msgpack.unpackb(httpx.post(f"{address}/v1/predictions", content=body, headers=headers).content)
    images = [frame["image"] for frame in reply["frames"]]
    return np.stack([np.frombuffer(image[b"data"], np.uint8).reshape(image[b"shape"]) for image in images])


def wait_for(condition):
    pause = threading.Event()
    for _ in range(100 * PATIENCE_S):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it never came")


def test_it_drives_a_world_model_as_it_drives_a_policy(address, play):
    with play(address, "drive") as robot:
        pass

    assert robot.facts["metadata"] == httpx.get(f"{address}/v1/models/toy").json()
    for number, frames in enumerate(robot.frames[:-1]):
        rows = [max(0, row) for row in range(number - 3, number + 1)]
        np.testing.assert_array_equal(frames, predict(address, rows))
    np.testing.assert_array_equal(robot.frames[-1], predict(address, [0, 0, 0, 0]))
    assert (robot.frames[-1] != robot.frames[5]).any()
    assert robot.facts["status"]["status"] == "reset"
    timings = [reply["server_timing"] for reply in robot.facts["replies"]]
    assert all(later["prev_total_ms"] >= earlier["infer_ms"] for earlier, later in pairwise(timings))


def test_its_action_chunk_broker_hands_out_frame_by_frame(address, play):
    with play(address, "broker", frames=FRAMES[:4], states=STATES[:4]) as robot:
        pass

    np.testing.assert_array_equal(robot.frames, predict(address, [0, 1, 2, 3], ensemble={"size": 2}))


def test_every_path_of_the_protocol_answers(address, play):
    with play(address, "paths") as robot:
        pass

    contract = httpx.get(f"{address}/v1/models/toy").json()
    assert robot.facts["metadata"] == [contract] * 3
    for frames in robot.frames:
        np.testing.assert_array_equal(frames, predict(address, [0, 0, 0, 0]))


def test_what_is_refused_is_an_error_of_its_own_and_what_is_no_message_ends_it(address, play):
    with play(address, "refused") as robot:
        pass

    texts = [robot.facts[name].partition("\n")[2] for name in ("refusal", "size", "fatal")]
    codes = [json.loads(text)["code"] for text in texts]
    assert all(set(json.loads(text)) == {"code", "message"} for text in texts)
    assert codes == ["state_dim_mismatch", "invalid_request", "invalid_request"]
    assert "expected 8x8, received 16x16" in texts[1]
    assert robot.frames.shape == (8, 8, 8, 3)
    assert robot.facts["close"] == 1011


def test_a_reply_that_was_given_up_is_never_read_as_a_later_one(play):
    go, is_held = threading.Event(), threading.Event()
    go.set()

    def brake(rows):
        if not go.is_set():
            is_held.set()
            assert go.wait(PATIENCE_S)

    superseded = 'foreframe_requests_total{code="superseded",route="/"} 1.0'
    with running_server(Settings(http={"port": 0}), given(AttentiveToyEngine(step_hook=brake))) as address:
        go.clear()
        with play(address, "late") as robot:
            assert robot.waited() == "sent"
            assert is_held.wait(PATIENCE_S)
            robot.go_on()
            assert robot.waited() == "sent again"
            wait_for(lambda: superseded in httpx.get(f"{address}/metrics").text)
            go.set()
            robot.go_on()
        expected = predict(address, [0, 0, 0, 1])

    assert robot.facts["ids"] == ["newest", "after"]
    np.testing.assert_array_equal(robot.frames, expected)


def test_the_shipped_model_answers_it(play):
    contract = Bundle.open(builtin_bundle()).contract
    camera, rows = contract.camera, contract.horizon
    mean = contract.state.mean
    with (
        running_server(Settings(http={"port": 0})) as address,
        play(
            address, "paths", frames=RNG.integers(0, 256, (1, camera.height, camera.width, 3), dtype=np.uint8),
            states=mean[None], actions=np.repeat(mean[None], rows, axis=0),
        ) as robot,
    ):  # fmt: skip
        pass

    assert robot.frames.shape == (3, rows, camera.height, camera.width, 3)
    assert robot.facts["metadata"][0]["id"] == contract.model
