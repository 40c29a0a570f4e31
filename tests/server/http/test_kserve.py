"""The tensor door answers what the native routes answer, in KServe's form, and counts what it did."""

import asyncio
import json
import threading
from dataclasses import replace

import httpx
import msgpack
import numpy as np
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.app import create_app
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

DATATYPES = {"|u1": "UINT8", "<f4": "FP32", "<f8": "FP64", "<i4": "INT32", "<i8": "INT64", "|b1": "BOOL"}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}
LENGTH = "inference-header-content-length"


def pack(tensors, *, outputs=None, parameters=None, **fields):
    """One body of JSON and then tensors, and the headers that say so."""
    inputs = [
        {
            "name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.str],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]  # fmt: skip
    document = {"inputs": inputs, "parameters": {"binary_data_output": True, **(parameters or {})}, **fields}
    if outputs is not None:
        document["outputs"] = outputs
    header = json.dumps(document).encode()
    return {"content": b"".join([header, *tensors.values()]), "headers": {LENGTH: str(len(header))}}


def unpack(reply):
    """The outputs of a reply by name, and its JSON."""
    assert reply.status_code == 200, reply.text
    length = int(reply.headers.get(LENGTH, len(reply.content)))
    document, rest, arrays = json.loads(reply.content[:length]), reply.content[length:], {}
    for output in document["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            arrays[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
            continue
        size = output["parameters"]["binary_data_size"]
        arrays[output["name"]] = np.frombuffer(rest[:size], dtype).reshape(output["shape"])
        rest = rest[size:]
    assert rest == b""
    return arrays, document


def rollout_tensors(seed=0, *, rows=1, horizon=8):
    rng = np.random.default_rng(seed)
    return {
        "past_frames": rng.integers(0, 256, (rows, 4, 8, 8, 3), dtype=np.uint8),
        "past_states": rng.standard_normal((rows, 4, 3), dtype=np.float32),
        "future_states": rng.standard_normal((rows, horizon, 3), dtype=np.float32),
    }


def observation(tensors, row=0):
    return {
        "cameras": {"head": {"frames": tensors["past_frames"][row]}},
        "state": {"values": tensors["past_states"][row]},
    }


async def ask_natively(client, path, document):
    reply = await client.post(path, content=msgpack.packb(document, default=map_for_msgpack), headers=MSGPACK)
    assert reply.status_code == 200, reply.text
    return msgpack.unpackb(reply.content)


async def infer(client, tensors, model="world_model", **fields):
    return unpack(await client.post(f"/v2/models/{model}/infer", **pack(tensors, **fields)))


async def statistics(client, model="world_model"):
    (found,) = (await client.get(f"/v2/models/{model}/stats")).json()["model_stats"]
    return found


async def test_the_answer_is_the_native_one(token_client):
    tensors = rollout_tensors()
    found, document = await infer(token_client, tensors, parameters={"num_members": 3, "seed": 7}, id="a")

    native = await ask_natively(token_client, "/v1/predictions", {
        "observation": observation(tensors), "future": {"values": tensors["future_states"][0]},
        "ensemble": {"size": 3}, "sampling": {"seed": 7},
        "return": {"encoding": "raw", "variance": "map", "members": True},
    })  # fmt: skip

    assert (document["id"], document["model_name"], document["model_version"]) == ("a", "world_model", "1")
    assert document["parameters"]["seed"] == 7
    assert found["mean"].tobytes() == b"".join(frame["image"][b"data"] for frame in native["frames"])
    assert found["members"].tobytes() == native["members"][b"data"]
    assert found["variance"].tobytes() == native["uncertainty"]["map"][b"data"]
    assert (found["mean"].shape, found["n_members"].tolist(), found["deadline_met"].tolist()) == (
        (1, 8, 8, 8, 3), [[3]], [[True]],
    )  # fmt: skip
    assert native["cache"] == "hit"


async def test_another_seed_gives_other_frames(token_client):
    one, _ = await infer(token_client, rollout_tensors(), parameters={"seed": 1})
    other, _ = await infer(token_client, rollout_tensors(), parameters={"seed": 2})

    assert not np.array_equal(one["mean"], other["mean"])


async def test_a_batch_is_its_rows_answers(token_client):
    tensors = rollout_tensors(rows=3)
    found, document = await infer(token_client, tensors, parameters={"num_members": 2, "seed": 3})

    for row in range(3):
        alone = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
        single, _ = await infer(token_client, alone, parameters={"num_members": 2, "seed": 3, "cache": "bypass"})
        assert all(np.array_equal(found[name][row], single[name][0]) for name in single)
    assert document["parameters"]["cache"] == "miss"


async def test_an_absent_seed_is_drawn_once_for_all_rows_and_returned(token_client):
    first, document = await infer(token_client, rollout_tensors(rows=2))
    again, _ = await infer(token_client, rollout_tensors(rows=2), parameters={"seed": document["parameters"]["seed"]})

    assert np.array_equal(first["mean"], again["mean"])


async def test_numbers_in_json_say_the_same_as_bytes(token_client):
    tensors = rollout_tensors()
    binary, _ = await infer(token_client, tensors, parameters={"seed": 1})
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.str], "data": data}
        for (name, array), data in zip(
            tensors.items(),
            [tensors["past_frames"].tolist(), *(each.ravel().tolist() for each in list(tensors.values())[1:])],
            strict=True,
        )
    ]

    reply = await token_client.post(
        "/v2/models/world_model/infer", json={"inputs": inputs, "parameters": {"seed": 1, "cache": "bypass"}}
    )

    numbers, _ = unpack(reply)
    assert LENGTH not in reply.headers
    assert reply.headers["content-type"] == "application/json"
    assert all(np.array_equal(numbers[name], binary[name], equal_nan=True) for name in binary)


async def test_only_what_is_wanted_comes_back_in_the_form_that_is_wanted(token_client):
    wanted = [{"name": "n_members", "parameters": {"binary_data": False}}, {"name": "mean"}]
    _, document = await infer(token_client, rollout_tensors(), outputs=wanted)

    assert [output["name"] for output in document["outputs"]] == ["n_members", "mean"]
    assert document["outputs"][0]["data"] == [1]
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 1536}


async def test_a_single_member_has_no_variance(token_client):
    found, _ = await infer(token_client, rollout_tensors())
    wanted = [{"name": "variance", "parameters": {"binary_data": False}}]
    _, document = await infer(token_client, rollout_tensors(), outputs=wanted)

    assert np.isnan(found["variance"]).all()
    assert set(document["outputs"][0]["data"]) == {None}


async def test_the_last_frame_alone_can_be_asked_for(token_client):
    every, _ = await infer(token_client, rollout_tensors(), parameters={"seed": 1})
    last, _ = await infer(token_client, rollout_tensors(), parameters={"seed": 1, "frames": "last"})

    assert np.array_equal(every["mean"][:, -1:], last["mean"])


async def test_odd_states_are_told(token_client):
    tensors = rollout_tensors()
    tensors["future_states"][0, 0, 0] = 50.0
    _, document = await infer(token_client, tensors)

    assert document["parameters"]["warnings"] == "state_out_of_range"


@pytest.mark.parametrize("target", ["target_ids", "target_frames"])
async def test_likelihoods_are_the_native_ones(token_client, target):
    tensors = rollout_tensors(horizon=3)
    states, rng = tensors.pop("future_states"), np.random.default_rng(5)
    natively = {"observation": observation(tensors), "map": True}
    given_target = {
        "target_ids": rng.integers(0, 6, (1, 3, 4)),
        "target_frames": rng.integers(0, 256, (1, 3, 8, 8, 3), dtype=np.uint8),
    }[target]

    found, _ = await infer(
        token_client, {**tensors, "target_states": states, target: given_target}, "world_model_likelihood"
    )

    native = await ask_natively(token_client, "/v1/likelihoods", {
        **natively, "target": {target.removeprefix("target_"): given_target[0], "state": {"values": states[0]}},
    })  # fmt: skip
    assert found["nats_total"].tolist() == [[native["nats_total"]]]
    assert found["nats_per_token"].tolist() == [[native["nats_per_token"]]]
    assert found["bits_per_frame"].tolist() == [native["bits_per_frame"]]
    assert found["map"].tobytes() == native["map"][b"data"]


async def test_costs_and_ranks_are_the_native_ones(token_client):
    tensors, rng = rollout_tensors(), np.random.default_rng(5)
    del tensors["future_states"]
    plans = rng.standard_normal((1, 5, 6, 3), dtype=np.float32)
    plans[0, 2, 0, 0] = np.nan
    goals = {"goal_image": tensors["past_frames"][:, 0], "goal_state": np.zeros((1, 3), np.float32)}

    found, document = await infer(
        token_client,
        {**tensors, **goals, "candidate_states": plans},
        "world_model_score",
        parameters={"seed": 3, "num_members": 2, "weight_spread": -0.5, "weight_goal_state": 2.0, "metric": "latent"},
    )

    native = await ask_natively(token_client, "/v1/scores", {
        "observation": observation(tensors), "candidates": {"values": plans[0]}, "sampling": {"seed": 3},
        "ensemble": {"size": 2}, "objectives": [
            {"kind": "goal_image", "params": {"image": {"data": goals["goal_image"][0]}, "metric": "latent"}},
            {"kind": "goal_state", "weight": 2.0, "params": {"values": goals["goal_state"][0]}},
            {"kind": "spread", "weight": -0.5},
        ],
    })  # fmt: skip
    costs = [np.nan if each["cost"] is None else each["cost"] for each in native["candidates"]]
    assert np.array_equal(found["costs"], [costs], equal_nan=True)
    assert found["ranks"].tolist() == [[each["rank"] or 0 for each in native["candidates"]]]
    assert found["best_index"].tolist() == [[native["best_index"]]]
    assert found["ranks"][0, 2] == 0
    assert document["parameters"]["seed"] == 3


async def test_a_timeout_in_microseconds_is_a_deadline(serving):
    go = threading.Event()
    engine = ToyRolloutEngine()
    async with serving(create_app(Settings(), given(engine))) as client:
        engine._step_hook = lambda rows: go.wait(20)
        body = pack(rollout_tensors(), parameters={"timeout": 50_000, "on_deadline": "fail"})
        reply = await client.post("/v2/models/world_model/infer", **body)
        go.set()

    assert (reply.status_code, reply.json()["code"]) == (504, "deadline_exceeded")


async def test_the_deadline_header_counts_here_too(token_client):
    body = pack(rollout_tensors(), parameters={"timeout": 0})
    body["headers"]["x-deadline-ms"] = "0"

    reply = await token_client.post("/v2/models/world_model/infer", **body)

    assert reply.status_code == 504


async def test_levels_of_priority_are_the_two_classes(token_app, token_client, monkeypatch):
    seen = []
    service = token_app.state.host.model.service
    predict = service.predict

    async def listen(query, call, watch=None):
        seen.append(query.priority.value)
        return await predict(query, call, watch)

    monkeypatch.setattr(service, "predict", listen)
    for level in (0, 1, 2, 9):
        await infer(token_client, rollout_tensors(), parameters={"priority": level})

    assert seen == ["controller", "controller", "bulk", "bulk"]


async def test_a_sequence_is_a_session(token_client):
    tensors, mark = rollout_tensors(), {"sequence_id": 5, "num_members": 2}
    first, document = await infer(token_client, tensors, parameters={**mark, "sequence_start": True, "seed": 9})
    step = {"future_states": tensors["future_states"]}
    second, _ = await infer(token_client, step, parameters=mark)

    stateless, _ = await infer(token_client, tensors, parameters={"num_members": 2, "seed": 9})
    past = {
        "past_frames": first["mean"][:, -4:],
        "past_states": tensors["future_states"][:, -4:],
        "future_states": tensors["future_states"],
    }
    chained, _ = await infer(token_client, past, parameters={"num_members": 2, "seed": 9 + 8})
    assert document["parameters"]["seed"] == 9
    assert np.array_equal(first["mean"], stateless["mean"])
    assert np.array_equal(second["mean"], chained["mean"])


async def test_the_end_of_a_sequence_ends_its_session(token_app, token_client):
    tensors, store = rollout_tensors(), token_app.state.host.model.sessions.store
    await infer(token_client, tensors, parameters={"sequence_id": "arm", "sequence_start": True})
    assert len(store) == 1
    await infer(
        token_client,
        {"future_states": tensors["future_states"]},
        parameters={"sequence_id": "arm", "sequence_end": True},
    )

    body = pack({"future_states": tensors["future_states"]}, parameters={"sequence_id": "arm"})
    reply = await token_client.post("/v2/models/world_model/infer", **body)
    assert len(store) == 0
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_model")
    assert "sequence_start" in reply.json()["error"]


async def test_a_sequence_that_starts_again_leaves_no_session_behind(token_app, token_client):
    host = token_app.state.host
    for _ in range(3):
        await infer(token_client, rollout_tensors(), parameters={"sequence_id": 1, "sequence_start": True})

    assert (len(host.model.sessions.store), len(host.model.sequences)) == (1, 1)


async def test_a_first_step_that_fails_leaves_no_session_behind(serving):
    def fail(rows):
        raise RuntimeError("planted")

    engine = ToyRolloutEngine()
    app = create_app(Settings(), given(engine))
    async with serving(app) as client:
        engine._step_hook = fail
        body = pack(rollout_tensors(), parameters={"sequence_id": 1, "sequence_start": True})
        reply = await client.post("/v2/models/world_model/infer", **body)
        host = app.state.host
        assert (reply.status_code, len(host.model.sessions.store), len(host.model.sequences)) == (500, 0, 0)
        assert "planted" not in reply.text


async def test_one_row_that_fails_ends_the_others(serving):
    engine = ToyRolloutEngine()
    app = create_app(Settings(), given(engine))
    async with serving(app) as client:
        engine._step_hook = lambda rows: 1 / 0
        reply = await client.post("/v2/models/world_model/infer", **pack(rollout_tensors(rows=4)))
        assert (reply.status_code, reply.json()["code"]) == (500, "model_fault")
        engine._step_hook = None
        await infer(client, rollout_tensors(rows=4))


async def test_statistics_count_what_happened(client):
    before = await statistics(client)
    await infer(client, rollout_tensors(rows=3), parameters={"seed": 1})
    await infer(client, rollout_tensors(rows=3), parameters={"seed": 1})
    await client.post("/v2/models/world_model/infer", **pack(rollout_tensors(horizon=9)))

    found = await statistics(client)

    assert (before["inference_count"], before["last_inference"]) == (0, 0)
    assert (found["inference_count"], found["execution_count"]) == (6, 3)
    counts = {name: each["count"] for name, each in found["inference_stats"].items()}
    assert counts == {
        "success": 2, "fail": 1, "queue": 2, "compute_input": 2, "compute_infer": 2, "compute_output": 2,
        "cache_hit": 3, "cache_miss": 3,
    }  # fmt: skip
    stages = {name: each["ns"] for name, each in found["inference_stats"].items()}
    parts = sum(stages[name] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts < stages["success"]
    assert found["last_inference"] > 1_600_000_000_000


async def test_every_model_is_described(token_client):
    assert (await token_client.get("/v2")).json()["name"] == "foreframe"
    index = (await token_client.post("/v2/repository/index")).json()
    assert [each["name"] for each in index] == ["world_model", "world_model_likelihood", "world_model_score"]
    for name in [each["name"] for each in index]:
        metadata = (await token_client.get(f"/v2/models/{name}")).json()
        config = (await token_client.get(f"/v2/models/{name}/config")).json()
        assert (await token_client.get(f"/v2/models/{name}/versions/1")).json() == metadata
        assert [each["dims"] for each in config["input"]] == [each["shape"][1:] for each in metadata["inputs"]]
        assert [each["data_type"] for each in config["output"]] == [
            f"TYPE_{each['datatype']}" for each in metadata["outputs"]
        ]
        assert (await token_client.get(f"/v2/models/{name}/ready")).status_code == 200
    assert len((await token_client.get("/v2/models/stats")).json()["model_stats"]) == 3


async def test_outputs_are_as_they_are_described(token_client):
    (metadata, found) = (
        (await token_client.get("/v2/models/world_model")).json(),
        (await infer(token_client, rollout_tensors(rows=2), parameters={"num_members": 3}))[0],
    )

    assert list(found) == [each["name"] for each in metadata["outputs"]]
    for each in metadata["outputs"]:
        array = found[each["name"]]
        assert array.dtype.str == DTYPES[each["datatype"]]
        assert array.ndim == len(each["shape"])
        assert all(side in (-1, size) for side, size in zip(each["shape"], array.shape, strict=True))


async def test_a_model_without_rollouts_offers_likelihoods_and_scores(serving):
    contract = replace(toy_contract(tokens=toy_tokens()), capabilities=("likelihood", "score"))
    async with serving(create_app(Settings(), given(None, ToyLikelihoodEngine(contract)))) as client:
        index = (await client.post("/v2/repository/index")).json()
        missing = await client.get("/v2/models/world_model")
        tensors = rollout_tensors(horizon=2)
        states = tensors.pop("future_states")
        ids = np.zeros((1, 2, 4), np.int64)
        found, _ = await infer(
            client, {**tensors, "target_ids": ids, "target_states": states}, "world_model_likelihood"
        )

    assert [each["name"] for each in index] == ["world_model_likelihood", "world_model_score"]
    assert (missing.status_code, missing.json()["code"]) == (409, "capability_missing")
    assert found["nats_total"][0, 0] > 0


async def test_a_server_that_starts_is_live_and_not_ready():
    app = create_app(Settings(), given(ToyRolloutEngine()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        for path in ("/v2/health/ready", "/v2/models/world_model/ready", "/v2/models/world_model"):
            reply = await client.get(path)
            assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "not_ready", "1")


async def test_clients_that_leave_end_their_rows(serving):
    go, engine = threading.Event(), ToyRolloutEngine()
    app = create_app(Settings(), given(engine))
    async with serving(app):
        engine._step_hook = lambda rows: go.wait(20)
        body = pack(rollout_tensors(rows=2))
        messages = [{"type": "http.request", "body": body["content"], "more_body": False}, {"type": "http.disconnect"}]
        sent, path = [], "/v2/models/world_model/infer"

        async def receive():
            return messages.pop(0) if len(messages) > 1 else messages[0]

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in body["headers"].items())]
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": headers, "scheme": "http", "root_path": "",
        }  # fmt: skip
        async with asyncio.timeout(20):
            await app(scope, receive, send)
        go.set()

    assert sent[0]["status"] == 499


async def test_requests_are_counted_under_their_route(token_client):
    await infer(token_client, rollout_tensors())
    await token_client.get("/v2/logging")

    metrics = (await token_client.get("/metrics")).text
    assert 'foreframe_requests_total{code="ok",route="/v2/models/{name}/infer"} 1.0' in metrics
    assert 'foreframe_requests_total{code="extension_missing",route="other"} 1.0' in metrics
