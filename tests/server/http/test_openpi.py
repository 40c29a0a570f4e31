"""The websocket of openpi's clients: what it takes, what comes back, what it remembers and what it refuses."""

import asyncio
import contextlib
import json

import msgpack
import numpy as np
import pytest
import structlog

from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.routes.openpi import PATHS
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
MARKER = "planted-7f3a"
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
STATES = RNG.normal(size=(9, 3)).astype(np.float32)
ACTIONS = RNG.normal(size=(8, 3)).astype(np.float32)
FIXED = {"sampling": {"seed": 7, "steps": 2}}
CLIP = {"observation/image": FRAMES[:4], "observation/state": STATES[:4], "actions": ACTIONS, **FIXED}


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


@pytest.fixture
def engine():
    return AttentiveToyEngine()


def pack(message):
    return msgpack.packb(message, default=map_for_msgpack)


def pack_like_msgpack_numpy(message):
    """Pack as the package of that name does, from its published format."""

    def mark(array):
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}

    return msgpack.packb(message, default=mark)


def array_of(fields):
    return np.frombuffer(fields[b"data"], fields[b"dtype"]).reshape(fields[b"shape"])


def tick(number, **fields):
    """What a robot sends of one frame."""
    return {
        "observation/image": FRAMES[number], "observation/state": STATES[number], "actions": ACTIONS, **FIXED, **fields
    }  # fmt: skip


@contextlib.asynccontextmanager
async def connect(arriving, app, path="/", **headers):
    """A robot that has been told the contract; what it is told in text waits in line with all else."""

    class PolicyRobot(arriving):
        async def send_to(self, message):
            if message.get("text") is not None:
                self.outbox.put_nowait(message["text"])
            await super().send_to(message)

        async def next(self):
            async with asyncio.timeout(PATIENCE_S):
                data = await self.outbox.get()
            return json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)

        async def infer(self, observation):
            self.send_bytes(pack(observation))
            return await self.next()

        async def look(self, observation):
            """The frames of a reply."""
            return array_of((await self.infer(observation))["frames"])

    async with PolicyRobot(app, path=path, **headers) as robot:
        robot.contract = await robot.next()
        yield robot


@pytest.fixture
def robots(arriving):
    return lambda app, path="/", **headers: connect(arriving, app, path, **headers)


@pytest.fixture
async def robot(app, client, robots):
    async with robots(app) as robot:
        yield robot


async def predict(client, frames, states, /, **fields):
    """The frames of the same request over HTTP."""
    request = {
        "observation": {"cameras": {"head": {"frames": frames}}, "state": {"values": states}},
        "future": {"values": ACTIONS}, "return": {"encoding": "raw"}, **FIXED, **fields,
    }  # fmt: skip
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    reply = await client.post("/v1/predictions", content=pack(request), headers=headers)
    return np.stack([array_of(frame["image"]) for frame in msgpack.unpackb(reply.content)["frames"]])


def counted(app, code, route="/"):
    labels = {"route": route, "code": code}
    return app.state.host.metrics.registry.get_sample_value("foreframe_requests_total", labels)


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_tells_the_contract_first_and_then_answers(app, client, robots, path):
    async with robots(app, path) as robot:
        reply = await robot.infer(CLIP)

    assert robot.contract == (await client.get("/v1/models/toy")).json()
    assert len(array_of(reply["frames"])) == 8
    assert counted(app, "ok", path) == 1


async def test_the_page_at_the_same_path_is_still_there(client):
    assert (await client.get("/")).headers["content-type"].startswith("text/html")


async def test_frames_come_back_as_one_array_of_what_http_predicts(client, robot):
    reply = await robot.infer({**CLIP, "ensemble": {"size": 2}, "frames": [2, 5], "request_id": "tick-1"})

    expected = await predict(client, FRAMES[:4], STATES[:4], ensemble={"size": 2}, frames=[2, 5])
    assert "actions" not in reply
    np.testing.assert_array_equal(array_of(reply["frames"]), expected)
    assert (reply["frame_indices"], reply["t_s"]) == ([2, 5], [0.2, 0.5])
    assert (reply["request_id"], reply["seed"], reply["warnings"]) == ("tick-1", 7, [])
    assert reply["uncertainty"]["members"] == 2
    assert len(reply["uncertainty"]["spread_per_frame"]) == 2


async def test_a_reply_tells_what_it_and_the_one_before_took(robot):
    first = (await robot.infer(CLIP))["server_timing"]
    second = (await robot.infer(CLIP))["server_timing"]

    assert "prev_total_ms" not in first
    assert second["prev_total_ms"] >= first["infer_ms"] >= first["denoise_ms"] > 0
    assert {"decode_ms", "queue_ms", "encode_ms", "respond_ms"} <= set(first)


KEYS = {
    "openpi": {"observation/image": FRAMES[:4], "observation/state": STATES[:4], "actions": ACTIONS},
    "openpi, the camera's name": {"observation/head": FRAMES[:4], "state": STATES[:4], "actions": ACTIONS},
    "openpi, a map": {"images": {"head": FRAMES[:4]}, "state": STATES[:4], "actions": ACTIONS},
    "lerobot": {"observation.images.head": FRAMES[:4], "observation.state": STATES[:4], "action": ACTIONS},
    "lerobot, one camera": {"observation.image": FRAMES[:4], "observation.state": STATES[:4], "action": ACTIONS},
    "channels first": {"images": {"head": np.moveaxis(FRAMES[:4], 3, 1)}, "state": STATES[:4], "actions": ACTIONS},
    "floats": {
        "observation.images.head": np.moveaxis(FRAMES[:4], 3, 1) / np.float32(255),
        "observation.state": STATES[:4].astype(np.float64), "action": ACTIONS,
    },
    "lists of numbers": {"image": FRAMES[:4], "state": STATES[:4].tolist(), "actions": ACTIONS.tolist()},
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
async def test_the_keys_of_openpi_and_of_lerobot_say_the_same(client, robot, case):
    frames = await robot.look({**KEYS[case], **FIXED})

    np.testing.assert_array_equal(frames, await predict(client, FRAMES[:4], STATES[:4]))


async def test_another_observation_has_another_future(client, robot):
    """The positive control of the test above."""
    frames = await robot.look({**CLIP, "observation/image": FRAMES[4:8]})

    assert (frames != await predict(client, FRAMES[:4], STATES[:4])).any()


async def test_both_encodings_of_arrays_are_read_with_keys_of_bytes_or_text(client, robot):
    expected = await predict(client, FRAMES[:4], STATES[:4])
    text_keys = {
        "observation/image": {"__ndarray__": True, "data": FRAMES[:4].tobytes(), "dtype": "|u1", "shape": [4, 8, 8, 3]}
    }
    nested = {"images": {"head": FRAMES[:4]}, "state": STATES[:4], "actions": ACTIONS, **FIXED}
    seed = {b"nd": False, b"type": "<i8", b"data": np.int64(7).tobytes()}
    for data in (
        pack(CLIP), pack({**CLIP, **text_keys}), pack({key.encode(): value for key, value in CLIP.items()}),
        pack_like_msgpack_numpy(CLIP), pack_like_msgpack_numpy(nested),
        pack_like_msgpack_numpy({**nested, "sampling": {"seed": seed, "steps": 2}}),
    ):  # fmt: skip
        robot.send_bytes(data)
        np.testing.assert_array_equal(array_of((await robot.next())["frames"]), expected)


async def test_one_picture_a_tick_is_seen_after_those_before_it(client, robot):
    for number in range(6):
        reply = await robot.infer(tick(number))
        seen = [max(0, row) for row in range(number - 3, number + 1)]
        np.testing.assert_array_equal(array_of(reply["frames"]), await predict(client, FRAMES[seen], STATES[seen]))
        repeated = [warning["message"] for warning in reply["warnings"] if warning["code"] == "context_repeated"]
        assert repeated == ([f"{3 - number} of 4 context frames repeat the first that was seen"] if number < 3 else [])


async def test_a_clip_takes_the_place_of_what_was_seen(client, robot):
    await robot.infer(tick(8))
    await robot.infer(CLIP)
    reply = await robot.infer(tick(4))

    np.testing.assert_array_equal(array_of(reply["frames"]), await predict(client, FRAMES[1:5], STATES[1:5]))
    assert reply["warnings"] == []


@pytest.mark.parametrize("beginning", [{"endpoint": "reset"}, {"session_id": "episode-2"}], ids=["reset", "session"])
async def test_a_reset_and_another_session_forget_what_was_seen(client, robot, beginning):
    await robot.infer(tick(0, session_id="episode-1"))
    await robot.infer(tick(1, session_id="episode-1"))
    if "endpoint" in beginning:
        status = await robot.infer({**beginning, "request_id": "r-1"})
        assert (status["status"], status["request_id"]) == ("reset", "r-1")
        assert set(status["server_timing"]) == {"infer_ms", "prev_total_ms"}
        beginning = {"session_id": "episode-1"}
    frames = await robot.look(tick(2, **beginning))

    np.testing.assert_array_equal(frames, await predict(client, FRAMES[[2, 2, 2, 2]], STATES[[2, 2, 2, 2]]))


async def test_a_refused_observation_is_not_remembered(client, robot):
    await robot.infer(tick(0))
    refused = await robot.infer(tick(8, actions=ACTIONS[:, :2]))
    frames = await robot.look(tick(1))

    assert refused["code"] == "state_dim_mismatch"
    np.testing.assert_array_equal(frames, await predict(client, FRAMES[[0, 0, 0, 1]], STATES[[0, 0, 0, 1]]))


async def test_two_robots_share_no_memory(app, client, robots):
    async with robots(app) as one, robots(app, PATHS[1]) as other:
        await one.infer(tick(0))
        frames = await other.look(tick(1))

    np.testing.assert_array_equal(frames, await predict(client, FRAMES[[1] * 4], STATES[[1] * 4]))


async def test_pictures_of_another_size_are_padded_when_asked(robot):
    large = RNG.integers(0, 256, (16, 12, 3), dtype=np.uint8)
    refused = await robot.infer(tick(0, **{"observation/image": large}))
    replies = [await robot.infer(tick(0, **{"observation/image": large}, resize="pad")) for _ in range(2)]

    assert refused["code"] == "invalid_request"
    assert "expected 8x8" in refused["message"]
    for reply in replies:
        assert ("resized", "/images/head") in [(warning["code"], warning["pointer"]) for warning in reply["warnings"]]


async def test_what_is_not_used_is_said_so(robot):
    reply = await robot.infer({**CLIP, "prompt": "fold the shirt"})
    silent = await robot.infer({**CLIP, "prompt": ""})

    assert [warning["code"] for warning in reply["warnings"]] == ["prompt_unused"]
    assert silent["warnings"] == []


async def test_odd_states_are_pointed_at_in_the_robot_s_own_keys(robot):
    actions = ACTIONS.copy()
    actions[5, 1] = 50
    reply = await robot.infer({**CLIP, "actions": actions})

    assert [warning["pointer"] for warning in reply["warnings"]] == ["/actions/5/1"]


async def test_a_model_of_one_context_frame_needs_no_memory(serving, robots):
    app = create_app(Settings(), given(AttentiveToyEngine(toy_contract(context_frames=1))))
    async with serving(app) as client, robots(app) as robot:
        await robot.infer(tick(0))
        reply = await robot.infer(tick(1))
        expected = await predict(client, FRAMES[1:2], STATES[1:2])

    assert reply["warnings"] == []
    np.testing.assert_array_equal(array_of(reply["frames"]), expected)


BAD = {
    "no future": ({"actions": ...}, "invalid_request", "/actions"),
    "no state": ({"observation/state": ...}, "invalid_request", "/state"),
    "no picture": ({"observation/image": ...}, "camera_missing", "/images"),
    "another camera": ({"observation/image": ..., "observation/wrist": FRAMES[:4]}, "camera_missing", "/images"),
    "a camera too many": ({f"observation/{MARKER}": FRAMES[:4]}, "camera_missing", "/images"),
    "two pictures of one camera": ({"observation/head": FRAMES[:4]}, "invalid_request", "/images"),
    "two futures": ({"action": ACTIONS}, "invalid_request", "/actions"),
    "a picture in text": ({"observation/image": MARKER}, "invalid_request", "/images"),
    "a picture of two axes": ({"observation/image": FRAMES[0, 0]}, "invalid_request", "/images"),
    "too few frames": ({"observation/image": FRAMES[:3]}, "invalid_request", "/images/head"),
    "dark floats": ({"observation/image": FRAMES[:4] - np.float32(1)}, "invalid_request", "/images"),
    "floats that are none": ({"observation/image": np.full((4, 8, 8, 3), np.nan, "<f4")}, "invalid_request", "/images"),
    "whole numbers": ({"observation/image": FRAMES[:4].astype(np.int32)}, "invalid_request", "/images/head"),
    "a state too wide": ({"observation/state": np.zeros((4, 4), "<f4")}, "state_dim_mismatch", "/state"),
    "a row for a clip": ({"observation/state": STATES[0]}, "state_dim_mismatch", "/state"),
    "a future that is none": ({"actions": np.full((8, 3), np.inf, "<f4")}, "non_finite", "/actions/0/0"),
    "too long a future": ({"actions": np.zeros((9, 3), "<f4")}, "state_dim_mismatch", "/actions"),
    "an unknown field": ({MARKER: 1}, "invalid_request", None),
    "a native observation": ({"observation": {"cameras": {}}}, "invalid_request", None),
    "an unknown endpoint": ({"endpoint": MARKER}, "invalid_request", "/endpoint"),
    "a reset that shows something": ({"endpoint": "reset"}, "invalid_request", None),
    "an id that cannot be echoed": ({"request_id": "a b"}, "invalid_request", "/request_id"),
    "pictures as a reply": ({"return": {"encoding": "mp4"}}, "invalid_request", "/return/encoding"),
    "a reply as text": ({"return": MARKER}, "invalid_request", "/return"),
    "another model": ({"model": MARKER}, "unknown_model", "/model"),
    "too large an ensemble": ({"ensemble": {"size": 33}}, "invalid_request", "/ensemble/size"),
    "a deadline of 0": ({"deadline_ms": 0}, "invalid_request", "/deadline_ms"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_refusal_is_text_with_a_code_and_the_connection_lives(app, robot, case):
    fields, code, pointer = BAD[case]
    asked = {key: value for key, value in {**CLIP, **fields}.items() if value is not ...}
    refusal = await robot.infer(asked)
    alive = await robot.infer(CLIP)

    assert set(refusal) == {"code", "message"}
    assert refusal["code"] == code
    assert pointer is None or f" {pointer}: " in refusal["message"]
    assert MARKER not in str(refusal)
    assert robot.close_code is None
    assert len(array_of(alive["frames"])) == 8
    await turn_until(lambda: (counted(app, code), counted(app, "ok")) == (1, 1))


async def test_a_tick_whose_state_is_no_row_is_refused(robot):
    refusal = await robot.infer(tick(0, **{"observation/state": STATES[:1]}))

    assert refusal["code"] == "state_dim_mismatch"


BROKEN = {"__ndarray__": True, "data": b"1234567", "dtype": "<f4", "shape": [2]}
FATAL = {
    "text": {"text": MARKER},
    "nothing": {"bytes": b""},
    "junk": {"bytes": bytes(range(256))},
    "truncated": {"bytes": pack(CLIP)[:-1]},
    "a list": {"bytes": pack([MARKER])},
    "an array shorter than it says": {"bytes": pack({**CLIP, "actions": BROKEN})},
    "an array of objects": {"bytes": pack({**CLIP, "actions": {**BROKEN, "dtype": "|O"}})},
    "an array larger than memory": {"bytes": pack({**CLIP, "actions": {**BROKEN, "shape": [2**30] * 4}})},
    "the other encoding, short": {"bytes": pack({"actions": {"nd": True, "type": "<f4", "shape": [2], "data": b"1"}})},
    "the other encoding, objects": {
        "bytes": pack({"a": {"nd": True, "type": "|O", "shape": [1], "data": b"12345678"}})
    },
}


@pytest.mark.parametrize("case", FATAL)
async def test_what_is_no_message_ends_the_connection(app, client, robots, case):
    async with robots(app) as robot:
        robot.inbox.put_nowait({"type": "websocket.receive", **FATAL[case]})
        await robot.ended()

    problem = json.loads(robot.text)
    assert (robot.close_code, set(problem)) == (1011, {"code", "message"})
    assert problem["code"] == "invalid_request"
    assert MARKER not in robot.text
    assert counted(app, "invalid_request") == 1


async def test_a_message_that_is_too_large_closes_with_its_own_code(serving, robots):
    app = create_app(Settings(http={"max_body_bytes": 2048}), given(ToyRolloutEngine()))
    async with serving(app), robots(app) as robot:
        robot.send_bytes(b"\x00" * 2049)
        await robot.ended()

    assert (robot.close_code, json.loads(robot.text)["code"]) == (1009, "payload_too_large")


async def test_a_server_that_is_not_ready_says_so_and_closes(app, arriving):
    async with arriving(app, path="/") as robot:
        await robot.ended()

    assert (robot.close_code, json.loads(robot.text)["code"]) == (1013, "not_ready")


@pytest.mark.parametrize("path", PATHS)
async def test_pages_of_other_sites_get_no_connection(app, client, arriving, path):
    async with arriving(app, path=path, origin="https://elsewhere.example") as robot:
        await robot.ended()

    assert not robot.is_accepted
    assert robot.denied[0]["status"] == 403


async def test_a_model_that_predicts_nothing_says_so(serving, robots):
    app = create_app(Settings(), given(None, ToyLikelihoodEngine()))
    async with serving(app), robots(app) as robot:
        refusal = await robot.infer(CLIP)

    assert robot.contract["id"] == "toy"
    assert refusal["code"] == "capability_missing"


@contextlib.asynccontextmanager
async def held_device(serving, robots, gate):
    """A robot on a server whose device is held while the gate is closed; it is open at the end."""
    app = create_app(Settings(), given(AttentiveToyEngine(step_hook=gate)))
    async with serving(app), robots(app) as robot:
        gate.close()
        try:
            yield robot
        finally:
            gate.open()


async def entered(gate):
    assert await asyncio.to_thread(gate.is_entered.wait, PATIENCE_S)


async def turn_until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0)


async def test_who_asks_again_never_gets_the_earlier_reply(client, serving, robots, gate):
    async with held_device(serving, robots, gate) as robot:
        robot.send_bytes(pack(tick(0, request_id="late")))
        await entered(gate)
        robot.send_bytes(pack(tick(1, request_id="later")))
        await turn_until(lambda: counted(robot.app, "superseded") == 1)
        robot.send_bytes(pack(tick(2, request_id="newest")))
        await turn_until(lambda: counted(robot.app, "superseded") == 2)
        gate.open()
        reply = await robot.next()
        after = await robot.infer(tick(3, request_id="next"))

    assert (reply["request_id"], after["request_id"]) == ("newest", "next")
    expected = await predict(client, FRAMES[[0, 0, 1, 2]], STATES[[0, 0, 1, 2]])
    np.testing.assert_array_equal(array_of(reply["frames"]), expected)
    assert robot.outbox.empty()


async def test_who_reads_slowly_gets_no_reply_that_is_not_on_its_way_yet(app, client, robots):
    async with robots(app) as robot:
        robot.is_reading.clear()
        robot.send_bytes(pack(tick(0, request_id="early")))
        await turn_until(lambda: app.state.host.model.service._worker.num_jobs == 0 and robot.inbox.empty())
        robot.send_bytes(pack(tick(1, request_id="newest")))
        await turn_until(lambda: counted(app, "superseded") == 1)
        robot.is_reading.set()
        reply = await robot.next()

    assert reply["request_id"] == "newest"
    assert robot.outbox.empty()


async def test_refusals_of_earlier_requests_are_not_read_late_either(robot):
    for number in range(4):
        robot.send_bytes(pack(tick(number, request_id=f"r-{number}", actions=ACTIONS[:, :2])))
    robot.send_bytes(pack(tick(4, request_id="newest")))
    reply = await robot.next()

    assert reply["request_id"] == "newest"
    assert robot.outbox.empty()


async def test_hanging_up_ends_the_work_and_leaves_nothing(serving, robots, gate):
    async with held_device(serving, robots, gate) as robot:
        worker = robot.app.state.host.model.service._worker
        robot.send_bytes(pack(CLIP))
        await entered(gate)
        robot.hang_up()
        await robot.ended()
        assert worker.num_jobs == 0
        assert counted(robot.app, "client_left") == 1
        assert robot.app.state.host.metrics.registry.get_sample_value("foreframe_connections") == 0
    assert robot.outbox.empty()


async def test_hanging_up_leaves_no_task(app, client, robots):
    before = asyncio.all_tasks()
    async with robots(app) as robot:
        await robot.infer(CLIP)
    await turn_until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def test_a_deadline_is_kept(robot):
    reply = await robot.infer({**CLIP, "deadline_ms": 60_000})

    assert reply["deadline_met"] is True


async def test_a_fault_of_the_server_s_own_is_logged_and_not_told(app, robot, monkeypatch):
    async def fail(*_):
        raise RuntimeError(MARKER)

    with structlog.testing.capture_logs() as lines, monkeypatch.context() as patch:
        patch.setattr(app.state.host.model.service, "predict", fail)
        refusal = await robot.infer(CLIP)
    alive = await robot.infer(CLIP)

    assert refusal["code"] == "model_fault"
    assert MARKER not in str(refusal)
    assert "frames" in alive
    assert "message failed" in [line["event"] for line in lines]


async def test_a_fault_while_reading_ends_the_connection_and_is_not_told(app, client, robots, monkeypatch):
    def fail(*_):
        raise RuntimeError(MARKER)

    monkeypatch.setattr("foreframe_server.routes.openpi.decode_step", fail)
    with structlog.testing.capture_logs() as lines:
        async with robots(app) as robot:
            robot.send_bytes(pack(CLIP))
            await robot.ended()

    assert (robot.close_code, json.loads(robot.text)["code"]) == (1011, "model_fault")
    assert MARKER not in robot.text
    assert "request failed" in [line["event"] for line in lines]


async def test_large_messages_do_not_hold_the_event_loop_up(app, client, robots, best_lag):
    data = pack({**CLIP, "actions": np.zeros((2**20, 3), np.float32)})

    async def send():
        async with robots(app) as robot:
            robot.send_bytes(data)
            assert (await robot.next())["code"] == "state_dim_mismatch"

    assert await best_lag(send) < 0.05
