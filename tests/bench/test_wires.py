"""Every form of a question holds the same question."""

import base64
import json

import numpy as np
import pytest
from peers.hosting.wire import FRAMES_SHAPE, REPLY_SHAPE, STATES_SHAPE, WorldRequest, pack, unpack
from peers.wires import base64_json, kserve, native, raw

from foreframe_server.codec.documents import read_document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.load.traces import Ask

RNG = np.random.default_rng(0)
REQUEST = WorldRequest(
    RNG.integers(0, 256, FRAMES_SHAPE).astype(np.uint8), RNG.standard_normal(STATES_SHAPE).astype(np.float32), 7, 8
)
FRAMES = RNG.integers(0, 256, REPLY_SHAPE).astype(np.uint8)


def assert_same(request):
    assert (request.seed, request.members) == (7, 8)
    np.testing.assert_array_equal(request.frames, REQUEST.frames)
    np.testing.assert_array_equal(request.states, REQUEST.states)


def test_raw_bytes_come_back():
    assert_same(unpack(raw("/").write(REQUEST, Ask()).body))
    np.testing.assert_array_equal(raw("/").read(FRAMES.tobytes(), {}).frames, FRAMES)


def test_text_in_json_holds_the_same_bytes():
    wire = base64_json("/")
    assert_same(unpack(base64.b64decode(json.loads(wire.write(REQUEST, Ask()).body)["body"])))
    reply = json.dumps({"frames": base64.b64encode(FRAMES.tobytes()).decode()}).encode()
    np.testing.assert_array_equal(wire.read(reply, {}).frames, FRAMES)


@pytest.mark.parametrize(("priority", "level"), [("controller", 1), ("bulk", 2)])
def test_tensors_follow_their_description(priority, level):
    sent = kserve("world").write(REQUEST, Ask(priority=priority))
    length = int(sent.headers["inference-header-content-length"])
    head = json.loads(sent.body[:length])
    assert sum(each["parameters"]["binary_data_size"] for each in head["inputs"]) == len(sent.body) - length
    assert sent.body[length:].startswith(REQUEST.frames.tobytes())
    assert head["parameters"]["priority"] == level


def test_foreframe_is_asked_with_the_same_frames_states_and_seed():
    sent = native().write(REQUEST, Ask(members=8, deadline_ms=500, cache="bypass"))
    document = read_document(sent.body, Media.MSGPACK, max_values=10_000)
    np.testing.assert_array_equal(document["observation"]["cameras"]["head"]["data"], REQUEST.frames)
    np.testing.assert_array_equal(document["future"]["values"], REQUEST.states[4:])
    assert document["sampling"]["seed"] == 7
    assert (document["ensemble"], document["cache"], document["deadline_ms"]) == ({"size": 8}, "bypass", 500)


def test_foreframe_says_what_its_answer_is():
    ensemble = {"members": 6, "steps": 4, "from_cache": 0}
    reply = {"frames": [{"image": frame} for frame in FRAMES], "ensemble": ensemble, "degraded": {"members": 6}}
    answer = native().read(write_document(reply, Media.MSGPACK), {})
    np.testing.assert_array_equal(answer.frames, FRAMES)
    assert (answer.members, answer.steps, answer.is_degraded, answer.is_from_cache) == (6, 4, True, False)


def test_a_body_of_another_length_is_refused():
    with pytest.raises(ValueError, match="bytes"):
        unpack(pack(REQUEST)[:-1])
