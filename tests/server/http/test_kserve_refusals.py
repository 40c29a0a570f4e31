"""Bad tensors get one text that names them: the native codes, nothing allocated for a claim, no word of the input."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreframe_server.codec.kserve import Datatype, read_inference
from foreframe_server.errors import InvalidRequest

pytestmark = pytest.mark.anyio

URL = "/v2/models/world_model/infer"
SCORE, LIKELIHOOD = "/v2/models/world_model_score/infer", "/v2/models/world_model_likelihood/infer"
LENGTH = "inference-header-content-length"
MARKER = "planted-7f3a"
MAX_ERROR_BYTES = 4096
MIB = 2**20
DATATYPES = {"|u1": "UINT8", "<f4": "FP32", "<i8": "INT64", "<f8": "FP64"}
GOOD = {
    "past_frames": np.full((1, 4, 8, 8, 3), 90, np.uint8),
    "past_states": np.full((1, 4, 3), 0.5, np.float32),
    "future_states": np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 8, 3),
}


def build(tensors=GOOD, change=None, **fields):
    """A document and its tensors' bytes; `change` sees the document before it is written."""
    inputs = [
        {
            "name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.str],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]  # fmt: skip
    document = {"inputs": inputs, **fields}
    if change is not None:
        change(document)
    header = json.dumps(document).encode()
    return header + b"".join(array.tobytes() for array in tensors.values()), {LENGTH: str(len(header))}


def with_tensor(**tensors):
    return build({**GOOD, **tensors})


def without(name):
    return build({other: array for other, array in GOOD.items() if other != name})


def with_input(place, **fields):
    return build(change=lambda document: document["inputs"][place].update(fields))


def with_parameters(**parameters):
    return build(parameters=parameters)


def wanting(*outputs):
    return build(outputs=list(outputs))


def states(value):
    array = GOOD["future_states"].copy()
    array[0, 2, 1] = value
    return array


def in_json(**fields):
    """The future as numbers in JSON, the rest as bytes."""
    description = {"name": "future_states", "shape": [1, 1, 3], "datatype": "FP32", "data": [0, 0.5, 1], **fields}
    rest = {name: array for name, array in GOOD.items() if name != "future_states"}
    return build(rest, lambda document: document["inputs"].append(description))


def binary(size):
    return {"binary_data_size": size}


# body and headers · status · code · what the text must name
TABLE = {
    "too few frames": (with_tensor(past_frames=GOOD["past_frames"][:, :3]), 422, "invalid_request", "past_frames"),
    "wrong size": (with_tensor(past_frames=np.zeros((1, 4, 8, 9, 3), np.uint8)), 422, "invalid_request", "past_frames"),
    "channels first": (
        with_tensor(past_frames=np.zeros((1, 4, 3, 8, 8), np.uint8)), 422, "invalid_request", "past_frames",
    ),
    "no batch axis": (
        build({name: array[0] for name, array in GOOD.items()}), 422, "invalid_request", "future_states",
    ),
    "frames as floats": (
        with_tensor(past_frames=np.zeros((1, 4, 8, 8, 3), np.float32)), 422, "invalid_request", "past_frames",
    ),
    "states as doubles": (
        with_tensor(past_states=np.zeros((1, 4, 3))), 422, "invalid_request", "past_states",
    ),
    "object dtype": (with_input(0, datatype="BYTES"), 422, "invalid_request", "past_frames"),
    "an unknown dtype": (with_input(0, datatype=MARKER[:16]), 422, "invalid_request", "past_frames"),
    "wrong state width": (
        with_tensor(future_states=np.zeros((1, 8, 4), np.float32)), 422, "state_dim_mismatch", "future_states/0",
    ),
    "future too long": (
        with_tensor(future_states=np.zeros((1, 9, 3), np.float32)), 422, "state_dim_mismatch", "future_states/0",
    ),
    "too few context rows": (
        with_tensor(past_states=np.zeros((1, 3, 3), np.float32)), 422, "state_dim_mismatch", "past_states/0",
    ),
    "NaN": (with_tensor(future_states=states(np.nan)), 422, "non_finite", "future_states/0/2/1"),
    "infinity": (with_tensor(future_states=states(np.inf)), 422, "non_finite", "future_states/0/2/1"),
    "another batch": (
        with_tensor(future_states=np.zeros((2, 8, 3), np.float32)), 422, "invalid_request", "future_states",
    ),
    "a batch too large": (
        build({name: np.repeat(array, 17, 0) for name, array in GOOD.items()}), 422, "invalid_request", "past_frames",
    ),
    "a missing input": (without("past_states"), 422, "invalid_request", "past_states is missing"),
    "an input twice": (
        build(change=lambda document: document["inputs"].append(
            {"name": "past_states", "shape": [1, 4, 3], "datatype": "FP32", "data": [0] * 12})),
        422, "invalid_request", "past_states is there twice",
    ),
    "an unknown input": (with_input(2, name=MARKER), 422, "invalid_request", "inputs/2"),
    "an unknown output": (wanting({"name": MARKER}), 422, "invalid_request", "outputs/0"),
    "an output twice": (wanting({"name": "mean"}, {"name": "mean"}), 422, "invalid_request", "outputs/1"),
    "a form that is no flag": (
        wanting({"name": "mean", "parameters": {"binary_data": 1}}), 422, "invalid_request", "binary_data",
    ),
    "a size of a byte less": (with_input(1, parameters=binary(47)), 422, "invalid_request", "past_states"),
    "a size of a byte more": (with_input(1, parameters=binary(49)), 422, "invalid_request", "past_states"),
    "a negative size": (with_input(1, parameters=binary(-48)), 422, "invalid_request", "past_states"),
    "a size as text": (with_input(1, parameters=binary("48")), 422, "invalid_request", "past_states"),
    "a size as true": (with_input(1, parameters=binary(True)), 422, "invalid_request", "past_states"),
    "a shape that claims terabytes": (
        with_input(0, shape=[2**31 - 1, 2**31 - 1], parameters=binary((2**31 - 1) ** 2)),
        422, "invalid_request", "binary_data_size",
    ),
    "a shape that overflows 64 bits to the true size": (
        with_input(0, shape=[2**30, 2**30, 16, 3], parameters=binary(768)), 422, "invalid_request", "past_frames",
    ),
    "a side of 0": (with_input(0, shape=[1, 0, 8, 8, 3]), 422, "invalid_request", "/inputs/0/shape/1"),
    "a negative side": (with_input(0, shape=[1, -4, 8, 8, 3]), 422, "invalid_request", "/inputs/0/shape/1"),
    "a side as true": (with_input(0, shape=[True, 4, 8, 8, 3]), 422, "invalid_request", "/inputs/0/shape/0"),
    "too many axes": (with_input(0, shape=[1] * 9), 422, "invalid_request", "/inputs/0/shape"),
    "neither data nor bytes": (with_input(1, parameters={}), 422, "invalid_request", "past_states"),
    "data and bytes": (with_input(1, data=[0]), 422, "invalid_request", "past_states"),
    "bytes too few": ((build()[0][:-1], build()[1]), 422, "invalid_request", "binary_data_size"),
    "bytes too many": ((build()[0] + b"x", build()[1]), 422, "invalid_request", "binary_data_size"),
    "no length of the JSON": ((build()[0], {}), 422, "invalid_request", "application/json"),
    "a length beyond the body": ((build()[0], {LENGTH: "99999"}), 422, "invalid_request", "longer than the body"),
    "a length inside the JSON": ((build()[0], {LENGTH: "20"}), 422, "invalid_request", "application/json"),
    "a length as text": ((build()[0], {LENGTH: MARKER}), 422, "invalid_request", "Inference-Header-Content-Length"),
    "a negative length": ((build()[0], {LENGTH: "-1"}), 422, "invalid_request", "Inference-Header-Content-Length"),
    "numbers too few": (in_json(data=[0, 1]), 422, "invalid_request", "future_states"),
    "numbers nested wrongly": (in_json(data=[[0, 1], [2, 3]]), 422, "invalid_request", "future_states"),
    "text among numbers": (in_json(data=[0, "1", 2]), 422, "invalid_request", "future_states"),
    "true among numbers": (in_json(data=[0, True, 2]), 422, "invalid_request", "future_states"),
    "text where numbers are due": (in_json(data=MARKER), 422, "invalid_request", "future_states"),
    "NaN among numbers": (in_json(data=[0, float("nan"), 2]), 422, "non_finite", "future_states/0/0/1"),
    "numbers beyond float32": (in_json(data=[0, 1e39, 2]), 422, "non_finite", "future_states/0/0/1"),
    "no members": (with_parameters(num_members=0), 422, "invalid_request", "num_members"),
    "a huge ensemble": (with_parameters(num_members=10**18), 422, "invalid_request", "num_members"),
    "half a member": (with_parameters(num_members=1.5), 422, "invalid_request", "num_members"),
    "too many steps": (with_parameters(steps=51), 422, "invalid_request", "steps"),
    "a seed beyond 53 bits": (with_parameters(seed=2**53), 422, "invalid_request", "seed"),
    "an unknown strategy": (with_parameters(strategy=MARKER), 422, "invalid_request", "strategy"),
    "an unknown parameter": (with_parameters(**{MARKER: 1}), 422, "invalid_request", "num_members"),
    "a nested parameter": (with_parameters(seed={"a": 1}), 422, "invalid_request", "/parameters must be"),
    "a timeout too short": (with_parameters(timeout=4999), 422, "invalid_request", "timeout"),
    "a timeout too long": (with_parameters(timeout=600_000_001), 422, "invalid_request", "timeout"),
    "a timeout as true": (with_parameters(timeout=True), 422, "invalid_request", "timeout"),
    "a negative priority": (with_parameters(priority=-1), 422, "invalid_request", "priority"),
    "a sequence that does not run": (
        build({"future_states": GOOD["future_states"]}, parameters={"sequence_id": 5}),
        404, "unknown_model", "sequence_id",
    ),
    "a sequence id that is none": (with_parameters(sequence_id=1.5), 422, "invalid_request", "sequence_id"),
    "a long sequence id": (with_parameters(sequence_id=MARKER * 20), 422, "invalid_request", "sequence_id"),
    "a start of no sequence": (with_parameters(sequence_start=True), 422, "invalid_request", "sequence_id"),
    "a start that is no flag": (
        with_parameters(sequence_id=1, sequence_start="yes"), 422, "invalid_request", "sequence_start",
    ),
    "frames chosen in a sequence": (
        with_parameters(sequence_id=1, sequence_start=True, frames="last"), 422, "invalid_request", "frames",
    ),
    "a sequence of several rows": (
        build(
            {name: np.repeat(array, 2, 0) for name, array in GOOD.items()},
            parameters={"sequence_id": 1, "sequence_start": True},
        ),
        422, "invalid_request", "past_frames",
    ),
    "shared memory in": (
        with_input(0, parameters={"shared_memory_region": MARKER, "shared_memory_byte_size": 768}),
        501, "extension_missing", "shared memory",
    ),
    "shared memory out": (
        wanting({"name": "mean", "parameters": {"shared_memory_region": MARKER}}),
        501, "extension_missing", "shared memory",
    ),
    "classes": (wanting({"name": "mean", "parameters": {"classification": 3}}), 501, "extension_missing", "Classes"),
    "empty": ((b"", {}), 422, "invalid_request", "application/json"),
    "no object": ((b"[1, 2]", {}), 422, "invalid_request", "object"),
    "deep": ((b"[" * 200_000, {}), 422, "invalid_request", "values"),
    "a key twice": ((b'{"id": "a", "id": "b"}', {}), 422, "invalid_request", "twice"),
    "a lone surrogate": ((b'{"id": "\\ud800"}', {}), 422, "invalid_request", "application/json"),
    "no inputs": ((b'{"inputs": []}', {}), 422, "invalid_request", "/inputs"),
    "msgpack": ((b"\x81\xa6inputs\x90", {}), 422, "invalid_request", "application/json"),
    "an unknown field": (build(**{MARKER: 1}), 422, "invalid_request", "not known"),
    "compressed": ((b"{}", {"content-encoding": "gzip"}), 415, "unsupported_media", "Compressed"),
    "oversized": ((b"x" * (16 * MIB + 1), {}), 413, "payload_too_large", "bytes"),
    "another site's page": ((build()[0], {**build()[1], "origin": "https://elsewhere"}), 403, "forbidden", "Origin"),
}  # fmt: skip

PAST = {name: GOOD[name] for name in ("past_frames", "past_states")}
PLANS = np.zeros((1, 2, 4, 3), np.float32)
OTHERS = {
    "no objective": (SCORE, build({**PAST, "candidate_states": PLANS}), "invalid_request", "weight_smoothness"),
    "a weight of 0": (
        SCORE, build({**PAST, "candidate_states": PLANS}, parameters={"weight_smoothness": 0}),
        "invalid_request", "weight_smoothness",
    ),
    "a weight without its goal": (
        SCORE, build({**PAST, "candidate_states": PLANS}, parameters={"weight_goal_image": 1}),
        "invalid_request", "goal_image is missing",
    ),
    "a metric without its goal": (
        SCORE, build({**PAST, "candidate_states": PLANS}, parameters={"weight_smoothness": 1, "metric": "pixel"}),
        "invalid_request", "metric",
    ),
    "a goal of another size": (
        SCORE, build({**PAST, "candidate_states": PLANS, "goal_image": np.zeros((1, 9, 8, 3), np.uint8)}),
        "invalid_request", "goal_image",
    ),
    "a goal of another width": (
        SCORE, build({**PAST, "candidate_states": PLANS, "goal_state": np.zeros((1, 4), np.float32)}),
        "state_dim_mismatch", "goal_state",
    ),
    "candidates without an axis": (
        SCORE, build({**PAST, "candidate_states": PLANS[0]}, parameters={"weight_smoothness": 1}),
        "invalid_request", "candidate_states",
    ),
    "no target": (
        LIKELIHOOD, build({**PAST, "target_states": PLANS[0, :1]}), "invalid_request", "target_frames needs either",
    ),
    "ids outside the vocabulary": (
        LIKELIHOOD,
        build({**PAST, "target_states": PLANS[0, :1, :1], "target_ids": np.full((1, 1, 4), 6)}),
        "invalid_request", "target_ids/0/0/0",
    ),
    "too few target states": (
        LIKELIHOOD,
        build({**PAST, "target_states": PLANS[0, :1, :1], "target_ids": np.zeros((1, 2, 4), np.int64)}),
        "state_dim_mismatch", "target_states/0",
    ),
    "a sequence of likelihoods": (
        LIKELIHOOD,
        build({**PAST, "target_states": PLANS[0, :1]}, parameters={"sequence_id": 1, "sequence_start": True}),
        "invalid_request", "parameters",
    ),
}  # fmt: skip


def check_error(reply, status, code, words):
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error"].startswith(f"{code}: ")
    assert words in reply.json()["error"]
    assert len(reply.content) <= MAX_ERROR_BYTES
    assert MARKER not in reply.text


async def test_the_unbroken_request_is_answered(shared_token_client):
    content, headers = build()
    assert (await shared_token_client.post(URL, content=content, headers=headers)).status_code == 200
    content, headers = in_json()
    assert (await shared_token_client.post(URL, content=content, headers=headers)).status_code == 200
    content, headers = build({**PAST, "candidate_states": PLANS}, parameters={"weight_smoothness": 1})
    assert (await shared_token_client.post(SCORE, content=content, headers=headers)).status_code == 200


@pytest.mark.parametrize("name", TABLE)
async def test_a_bad_body_gets_its_error(shared_token_client, name):
    (content, headers), status, code, words = TABLE[name]

    reply = await shared_token_client.post(URL, content=content, headers=headers)

    check_error(reply, status, code, words)


@pytest.mark.parametrize("name", OTHERS)
async def test_other_models_name_their_own_tensors(shared_token_client, name):
    url, (content, headers), code, words = OTHERS[name]

    reply = await shared_token_client.post(url, content=content, headers=headers)

    check_error(reply, 422, code, words)


async def test_a_row_of_a_batch_is_named(shared_token_client):
    tensors = {name: np.repeat(array, 3, 0) for name, array in GOOD.items()}
    tensors["past_states"][2, 1, 0] = np.nan
    content, headers = build(tensors)

    reply = await shared_token_client.post(URL, content=content, headers=headers)

    check_error(reply, 422, "non_finite", "past_states/2/1/0")


async def test_the_past_of_a_running_sequence_is_refused(shared_token_client):
    content, headers = with_parameters(sequence_id="a", sequence_start=True)
    assert (await shared_token_client.post(URL, content=content, headers=headers)).status_code == 200

    content, headers = with_parameters(sequence_id="a")
    reply = await shared_token_client.post(URL, content=content, headers=headers)

    check_error(reply, 422, "invalid_request", "past_frames")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v2/models/{MARKER}", 404),
        (f"/v2/models/{MARKER}/ready", 404),
        (f"/v2/models/world_model/versions/{MARKER}", 404),
        (f"/v2/{MARKER}", 404),
        (f"/v2/models/{'a' * 300}", 422),
        ("/v2/models/world_model/infer", 405),
    ],
)
async def test_unknown_paths_answer_in_the_same_form(shared_token_client, path, status):
    reply = await shared_token_client.get(path)

    assert reply.status_code == status
    assert set(reply.json()) == {"error", "code"}
    assert MARKER not in reply.text


@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/status",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/models/world_model/trace/setting",
        "/v2/logging",
        "/v2/models/world_model/generate",
        "/v2/models/world_model/generate_stream",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_extensions_that_are_not_offered_are_said_to_be_so(shared_token_client, path, method):
    check_error(await shared_token_client.request(method, path), 501, "extension_missing", "GET /v2")


async def test_other_doors_keep_their_own_form(shared_token_client):
    for path in ("/v2x", "/v1/v2/nothing"):
        assert (await shared_token_client.get(path)).headers["content-type"] == "application/problem+json"


async def test_too_many_numbers_are_not_written_as_text(shared_token_client, monkeypatch):
    monkeypatch.setattr("foreframe_server.codec.kserve._MAX_TEXT_VALUES", 1000)
    content, headers = build()

    reply = await shared_token_client.post(URL, content=content, headers=headers)

    check_error(reply, 422, "invalid_request", "binary_data")


async def test_bad_input_leaves_the_server_as_it_was(client, engine):
    content, headers = build(parameters={"seed": 1, "cache": "bypass", "binary_data_output": True})
    before = await client.post(URL, content=content, headers=headers)
    num_steps = engine.calls["step"]

    for (bad, bad_headers), _, _, _ in TABLE.values():
        await client.post(URL, content=bad, headers=bad_headers)

    assert engine.calls["step"] == num_steps
    after = await client.post(URL, content=content, headers=headers)
    assert before.status_code == 200
    assert after.content == before.content


SIDES = st.integers(1, 2**31 - 1) | st.integers(1, 6)


@settings(max_examples=500, deadline=None)
@given(
    shape=st.lists(SIDES, min_size=1, max_size=8), claimed=st.integers(-4, 2**70) | st.integers(0, 600), rest=st.data()
)
def test_only_sizes_that_add_up_are_read(shape, claimed, rest):
    true_bytes = int(np.prod([float(side) for side in shape])) * 4
    if true_bytes <= 600 and rest.draw(st.booleans()):
        claimed = true_bytes
    num_bytes = rest.draw(st.just(min(max(claimed, 0), 600)) | st.integers(0, 600))
    description = {"name": "a", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": claimed}}
    header = json.dumps({"inputs": [description]}).encode()
    body, is_right = header + bytes(num_bytes), claimed == num_bytes == true_bytes

    try:
        inference = read_inference(body, len(header), {"a": Datatype.FP32}, max_values=1000)
    except InvalidRequest:
        assert not is_right
    else:
        assert is_right
        assert inference.tensors["a"].shape == tuple(shape)


def test_tensors_are_views_of_the_body():
    content, headers = build({"past_frames": np.zeros((1, 16, 512, 512, 3), np.uint8)})
    datatypes = {"past_frames": Datatype.UINT8}
    tracemalloc.start()
    inference = read_inference(content, int(headers[LENGTH]), datatypes, max_values=1000)
    peak = tracemalloc.get_traced_memory()[1]
    copied = bytes(memoryview(content)[1:])
    copied_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    frames = inference.tensors["past_frames"]
    assert np.shares_memory(frames, np.frombuffer(content, np.uint8))
    assert not frames.flags.writeable
    assert peak < MIB < len(copied) <= copied_peak


def test_numbers_that_stand_crooked_in_the_body_are_put_straight():
    tensors = {"a": np.arange(3, dtype=np.float32)}
    for pad in range(4):
        content, headers = build(tensors, id="x" * pad)
        array = read_inference(content, int(headers[LENGTH]), {"a": Datatype.FP32}, max_values=1000).tensors["a"]
        assert array.flags.aligned
        assert np.array_equal(array, tensors["a"])
