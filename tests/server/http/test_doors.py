"""One table over all doors: what is wrong is refused everywhere, with the same code."""

import base64
import json
from dataclasses import dataclass, field, replace

import msgpack
import numpy as np
import pytest

from foreframe_server.codec.arrays import map_for_msgpack

pytestmark = pytest.mark.anyio

MSGPACK = {"content-type": "application/msgpack"}


@dataclass(frozen=True)
class Ask:
    """A prediction as every door can ask it."""

    frames: np.ndarray = field(default_factory=lambda: np.full((4, 8, 8, 3), 90, np.uint8))
    states: np.ndarray = field(default_factory=lambda: np.full((4, 3), 0.5, np.float32))
    future: np.ndarray = field(default_factory=lambda: np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3))
    sampling: dict = field(default_factory=lambda: {"steps": 2, "seed": 7})
    ensemble: dict = field(default_factory=lambda: {"size": 2})
    deadline_ms: object = 20_000
    model: str = "toy"

    def camera(self, data):
        """The camera's entry, with the frames' bytes as a door writes them."""
        height, width = self.frames.shape[1:3]
        return {"head": {"encoding": "raw_rgb8", "data": data, "width": width, "height": height}}

    def observation(self, data):
        return {"cameras": self.camera(data), "state": {"values": self.states.tolist()}}

    def options(self):
        return {"sampling": self.sampling, "ensemble": self.ensemble, "model": self.model}

    def document(self, data):
        future = {"future": {"kind": "state", "values": self.future.tolist()}}
        return {
            "observation": self.observation(data), **future, **self.options(), "deadline_ms": self.deadline_ms
        }  # fmt: skip


async def over_json(client, app, arriving, ask):
    body = ask.document(base64.b64encode(ask.frames.tobytes()).decode())
    return code_of(await client.post("/v1/predictions", json=body))


async def over_msgpack(client, app, arriving, ask):
    body = msgpack.packb(ask.document(ask.frames.tobytes()))
    return code_of(await client.post("/v1/predictions", content=body, headers=MSGPACK))


async def over_multipart(client, app, arriving, ask):
    request = json.dumps(ask.document({"$part": "clip"}))
    files = {"request": (None, request, "application/json"), "clip": ("clip", ask.frames.tobytes())}
    return code_of(await client.post("/v1/predictions", files=files))


async def over_the_websocket(client, app, arriving, ask):
    async with arriving(app) as robot:
        await robot.next()
        answer = await robot.ask("predict", **ask.document(ask.frames.tobytes()))
    return answer["body"]["code"] if answer["type"] == "error" else "ok"


async def over_openpi(client, app, arriving, ask):
    told = []

    class PolicyRobot(arriving):
        async def send_to(self, message):
            if message.get("text") is not None:
                told.append(json.loads(message["text"])["code"])
                self.outbox.put_nowait(msgpack.packb({}))
            await super().send_to(message)

    message = {
        "observation/image": ask.frames, "observation/state": ask.states, "actions": ask.future,
        "deadline_ms": ask.deadline_ms, **ask.options(),
    }  # fmt: skip
    async with PolicyRobot(app, path="/") as robot:
        await robot.next()
        robot.send_bytes(msgpack.packb(message, default=map_for_msgpack))
        await robot.next()
    return told[0] if told else "ok"


async def over_kserve(client, app, arriving, ask):
    tensors = {"past_frames": ask.frames, "past_states": ask.states, "future_states": ask.future}
    kinds = {"|u1": "UINT8", "<f4": "FP32"}
    inputs = [
        {
            "name": name, "shape": [1, *array.shape], "datatype": kinds[array.dtype.str],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]  # fmt: skip
    timeout = ask.deadline_ms * 1000 if isinstance(ask.deadline_ms, int) else ask.deadline_ms
    parameters = {**ask.sampling, "num_members": ask.ensemble["size"], "timeout": timeout}
    header = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    name = {"toy": "world_model"}.get(ask.model, ask.model)
    body = header + b"".join(array.tobytes() for array in tensors.values())
    headers = {"inference-header-content-length": str(len(header))}
    return code_of(await client.post(f"/v2/models/{name}/infer", content=body, headers=headers))


async def over_a_session(client, app, arriving, ask):
    start = {"observation": ask.observation(ask.frames.tobytes()), "model": ask.model}
    made = await client.post("/v1/sessions", content=msgpack.packb(start), headers=MSGPACK)
    if made.status_code >= 400:
        return code_of(made)
    step = {
        "future": {"values": ask.future.tolist()}, "sampling": ask.sampling, "ensemble": ask.ensemble,
        "deadline_ms": ask.deadline_ms,
    }  # fmt: skip
    url = f"/v1/sessions/{made.json()['session_id']}/steps"
    return code_of(await client.post(url, content=msgpack.packb(step), headers=MSGPACK))


def code_of(reply):
    return "ok" if reply.status_code == 200 else reply.json()["code"]


def not_a_number(ask):
    future = ask.future.copy()
    future[2, 1] = np.nan
    return replace(ask, future=future)


JSON, OPENPI, KSERVE, SESSION = over_json, over_openpi, over_kserve, over_a_session
DOORS = (over_json, over_msgpack, over_multipart, over_the_websocket, over_openpi, over_kserve, over_a_session)
# what is wrong · its code · doors that cannot say it, or to which it is no mistake
TABLE = {
    "nothing": (lambda ask: ask, "ok", ()),
    "pictures of another size": (
        lambda ask: replace(ask, frames=np.zeros((4, 8, 9, 3), np.uint8)),
        "invalid_request",
        (),
    ),
    "too few pictures": (
        lambda ask: replace(ask, frames=ask.frames[:3], states=ask.states[:3]),
        "invalid_request",
        (OPENPI,),
    ),
    "too many pictures": (
        lambda ask: replace(ask, frames=np.zeros((5, 8, 8, 3), np.uint8)),
        "invalid_request",
        (OPENPI,),
    ),
    "states of another width": (
        lambda ask: replace(ask, states=np.zeros((4, 4), np.float32)),
        "state_dim_mismatch",
        (),
    ),
    "a future of another width": (
        lambda ask: replace(ask, future=np.zeros((8, 2), np.float32)),
        "state_dim_mismatch",
        (),
    ),
    "a future beyond the horizon": (
        lambda ask: replace(ask, future=np.zeros((9, 3), np.float32)),
        "state_dim_mismatch",
        (SESSION,),
    ),
    "no number": (not_a_number, "non_finite", (JSON, over_multipart)),
    "too many steps": (lambda ask: replace(ask, sampling={"steps": 51}), "invalid_request", ()),
    "half a step": (lambda ask: replace(ask, sampling={"steps": 1.5}), "invalid_request", ()),
    "a truth for a number": (lambda ask: replace(ask, sampling={"steps": True}), "invalid_request", ()),
    "a seed below 0": (lambda ask: replace(ask, sampling={"seed": -1}), "invalid_request", ()),
    "guidance where there is none": (
        lambda ask: replace(ask, sampling={"guidance": 2.0}),
        "invalid_request",
        (KSERVE,),
    ),
    "too many members": (lambda ask: replace(ask, ensemble={"size": 33}), "invalid_request", ()),
    "no member": (lambda ask: replace(ask, ensemble={"size": 0}), "invalid_request", ()),
    "a deadline in the past": (lambda ask: replace(ask, deadline_ms=-5), "invalid_request", ()),
    "a deadline in words": (lambda ask: replace(ask, deadline_ms="soon"), "invalid_request", ()),
    "a deadline no server can meet": (lambda ask: replace(ask, deadline_ms=600_001), "invalid_request", ()),
    "another model": (lambda ask: replace(ask, model="other"), "unknown_model", ()),
}
CASES = [
    pytest.param(spoil, code, door, id=f"{name}, {door.__name__}")
    for name, (spoil, code, exempt) in TABLE.items()
    for door in DOORS
    if door not in exempt
]


@pytest.mark.parametrize(("spoil", "code", "door"), CASES)
async def test_every_door_refuses_the_same_with_the_same_code(client, app, arriving, spoil, code, door):
    assert await door(client, app, arriving, spoil(Ask())) == code
    assert await door(client, app, arriving, Ask()) == "ok", "the door takes the next question"
