"""NVIDIA's own client, unmodified, against a real server: what it can ask for is answered as it expects."""

import contextlib

import httpx
import msgpack
import numpy as np
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import Settings

tritonclient = pytest.importorskip("tritonclient.http")

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (1, 4, 8, 8, 3), dtype=np.uint8)
STATES = RNG.standard_normal((1, 4, 3), dtype=np.float32)
FUTURE = RNG.standard_normal((1, 8, 3), dtype=np.float32)
DATATYPES = {"|u1": "UINT8", "<f4": "FP32", "<i8": "INT64"}
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


@pytest.fixture(scope="module")
def address():
    engine = ToyLikelihoodEngine()
    with running_server(Settings(http={"port": 0}), given(ToyRolloutEngine(engine.contract), engine)) as address:
        yield address


@pytest.fixture
def client(address):
    with contextlib.closing(tritonclient.InferenceServerClient(address.removeprefix("http://"))) as client:
        yield client


def put(name, array, *, binary=True):
    tensor = tritonclient.InferInput(name, list(array.shape), DATATYPES[array.dtype.str])
    return tensor.set_data_from_numpy(array, binary_data=binary)


def rollout(*, binary=True, frames=FRAMES, states=STATES, future=FUTURE):
    return [
        put("past_frames", frames, binary=binary),
        put("past_states", states, binary=binary),
        put("future_states", future, binary=binary),
    ]


def refusal(call):
    with pytest.raises(tritonclient.InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def predict_natively(address, *, seed, size=1):
    observation = {"cameras": {"head": {"frames": FRAMES[0]}}, "state": {"values": STATES[0]}}
    asked = {
        "observation": observation, "future": {"values": FUTURE[0]}, "sampling": {"seed": seed},
        "ensemble": {"size": size}, "return": {"encoding": "raw"},
    }  # fmt: skip
    content = msgpack.packb(asked, default=map_for_msgpack)
    reply = msgpack.unpackb(httpx.post(f"{address}/v1/predictions", content=content, headers=MSGPACK).content)
    return b"".join(frame["image"][b"data"] for frame in reply["frames"])


def test_the_server_and_its_models_are_live_ready_and_described(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("world_model")
    assert client.is_model_ready("world_model", "1")
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert [each["name"] for each in client.get_model_repository_index()] == [
        "world_model", "world_model_likelihood", "world_model_score",
    ]  # fmt: skip
    metadata, config = client.get_model_metadata("world_model", "1"), client.get_model_config("world_model")
    assert {each["name"]: each["shape"] for each in metadata["inputs"]} == {
        "past_frames": [-1, 4, 8, 8, 3], "past_states": [-1, 4, 3], "future_states": [-1, -1, 3],
    }  # fmt: skip
    assert config["max_batch_size"] == 16


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_go_in_and_come_back_in_either_form(client, address, binary_in, binary_out):
    wanted = [tritonclient.InferRequestedOutput(name, binary_data=binary_out) for name in ("mean", "n_members")]

    result = client.infer(
        "world_model", rollout(binary=binary_in), outputs=wanted, request_id="abc",
        parameters={"num_members": 4, "steps": 4, "seed": 11, "strategy": "sample"},
    )  # fmt: skip

    assert result.get_response()["id"] == "abc"
    assert result.as_numpy("mean").astype(np.uint8).tobytes() == predict_natively(address, seed=11, size=4)
    assert result.as_numpy("n_members").tolist() == [[4]]
    assert ("data" in result.get_output("mean")) is not binary_out


def test_every_output_comes_back_where_none_is_named(client):
    result = client.infer("world_model", rollout(), parameters={"num_members": 2})

    shapes = {
        name: result.as_numpy(name).shape for name in ("mean", "variance", "members", "n_members", "deadline_met")
    }
    assert shapes == {
        "mean": (1, 8, 8, 8, 3), "variance": (1, 8, 8, 8), "members": (1, 2, 8, 8, 8, 3), "n_members": (1, 1),
        "deadline_met": (1, 1),
    }  # fmt: skip
    assert result.as_numpy("deadline_met").dtype == bool


def test_a_sequence_goes_on_from_its_last_frames(client):
    first = client.infer("world_model", rollout(), sequence_id=3, sequence_start=True, parameters={"seed": 5})
    second = client.infer("world_model", [put("future_states", FUTURE)], sequence_id=3, sequence_end=True)

    past = {"frames": first.as_numpy("mean")[:, -4:], "states": FUTURE[:, -4:]}
    alone = client.infer("world_model", rollout(**past), parameters={"seed": 5 + 8})
    assert np.array_equal(second.as_numpy("mean"), alone.as_numpy("mean"))
    status, text = refusal(lambda: client.infer("world_model", [put("future_states", FUTURE)], sequence_id=3))
    assert (status, text.split(":")[0]) == ("404", "unknown_model")


def test_priority_and_timeout_are_taken(client):
    result = client.infer("world_model", rollout(), priority=2, timeout=60_000_000)

    assert result.as_numpy("deadline_met").tolist() == [[True]]
    status, text = refusal(lambda: client.infer("world_model", rollout(), timeout=1))
    assert (status, text.split(":")[0]) == ("422", "invalid_request")
    assert "timeout" in text


def test_many_at_once_are_answered_each_with_its_own(address):
    url = address.removeprefix("http://")
    with contextlib.closing(tritonclient.InferenceServerClient(url, concurrency=4)) as client:
        pending = [client.async_infer("world_model", rollout(), parameters={"seed": seed}) for seed in range(8)]
        answers = [each.get_result().get_response()["parameters"]["seed"] for each in pending]

    assert answers == list(range(8))


def test_likelihoods_and_scores_are_told(client):
    past = [put("past_frames", FRAMES), put("past_states", STATES)]
    target = [put("target_ids", RNG.integers(0, 6, (1, 2, 4))), put("target_states", FUTURE[:, :2])]
    plans = [put("candidate_states", RNG.standard_normal((1, 5, 6, 3), dtype=np.float32))]

    likelihood = client.infer("world_model_likelihood", [*past, *target])
    scores = client.infer(
        "world_model_score", [*past, *plans, put("goal_image", FRAMES[:, 0])], parameters={"weight_smoothness": 0.1}
    )

    assert likelihood.as_numpy("map").sum() == pytest.approx(likelihood.as_numpy("bits_per_frame").sum(), rel=1e-6)
    costs = scores.as_numpy("costs")
    assert scores.as_numpy("best_index")[0, 0] == costs[0].argmin()
    assert sorted(scores.as_numpy("ranks")[0]) == [1, 2, 3, 4, 5]


def test_refusals_come_in_the_client_s_own_exception(client):
    few = rollout(frames=FRAMES[:, :3])
    status, text = refusal(lambda: client.infer("world_model", few))
    assert (status, text.split(":")[0]) == ("422", "invalid_request")
    assert "past_frames" in text

    assert refusal(lambda: client.infer("nothing", rollout()))[0] == "404"
    assert refusal(lambda: client.infer("world_model", rollout(), model_version="9"))[0] == "404"
    compressed = refusal(lambda: client.infer("world_model", rollout(), request_compression_algorithm="gzip"))
    assert (compressed[0], compressed[1].split(":")[0]) == ("415", "unsupported_media")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.register_system_shared_memory("a", "/a", 64),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.get_trace_settings("world_model"),
        lambda client: client.update_log_settings({}),
        lambda client: client.load_model("world_model", config="{}"),
    ],
)
def test_extensions_that_are_not_offered_say_so(client, call):
    status, text = refusal(lambda: call(client))

    assert (status, text.split(":")[0]) == ("501", "extension_missing")


def test_models_that_are_not_in_the_server_s_folder_are_neither_loaded_nor_unloaded(client):
    for change in (client.load_model, client.unload_model):
        status, text = refusal(lambda change=change: change("push"))
        assert (status, text.split(":")[0]) == ("404", "unknown_model")


def test_tensors_in_shared_memory_are_not_read(client):
    tensor = tritonclient.InferInput("past_frames", list(FRAMES.shape), "UINT8")
    tensor.set_shared_memory("region", FRAMES.nbytes)

    assert refusal(lambda: client.infer("world_model", [tensor, *rollout()[1:]]))[0] == "501"


def test_statistics_grow_by_what_was_asked(client):
    def count():
        (found,) = client.get_inference_statistics("world_model_score")["model_stats"]
        return found["inference_count"], found["inference_stats"]["success"]["count"]

    rows, requests = count()
    past = [put("past_frames", FRAMES.repeat(2, 0)), put("past_states", STATES.repeat(2, 0))]
    plans = put("candidate_states", np.zeros((2, 3, 6, 3), np.float32))
    client.infer("world_model_score", [*past, plans], parameters={"weight_smoothness": 1})

    assert count() == (rows + 2, requests + 1)
