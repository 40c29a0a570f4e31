"""Several models in one server: every door finds the one that is meant, and operators change them under load."""

import asyncio

import numpy as np
import pytest

from foreframe_engines.testing import toy_contract
from foreframe_server.app import create_app
from foreframe_server.codec.kserve_models import PREDICTION

pytestmark = pytest.mark.anyio


@pytest.fixture
def two_models(toy_folder):
    """An app with the models `grasp` and `reach`, whose answers differ."""
    toy_folder.add("grasp", "1", shift=0.1)
    toy_folder.add("reach", "1", shift=0.2)
    return create_app(toy_folder.settings(), toy_folder.open)


@pytest.fixture
async def client(anyio_backend, two_models, serving):
    async with serving(two_models) as client:
        yield client


def frames_of(reply):
    assert reply.status_code == 200, reply.text
    return [frame["image"] for frame in reply.json()["frames"]]


async def predict(client, request, **fields):
    return await client.post("/v1/predictions", json=request(cache="bypass", **fields))


def check_problem(reply, status, code):
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    return reply.json()


async def test_a_prediction_is_of_the_model_that_it_names(client, toy_request):
    replies = [await predict(client, toy_request, model=name) for name in ("grasp", "reach")]
    assert [reply.json()["model"] for reply in replies] == ["grasp", "reach"]
    assert frames_of(replies[0]) != frames_of(replies[1])


async def test_a_prediction_that_names_none_of_several_is_refused(client, toy_request):
    problem = check_problem(await predict(client, toy_request), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/model"
    assert "grasp, reach" in problem["errors"][0]["expected"]


async def test_a_prediction_of_an_unknown_model_is_refused(client, toy_request):
    problem = check_problem(await predict(client, toy_request, model="push"), 404, "unknown_model")
    assert problem["errors"] == [{"pointer": "/model", "message": "is not loaded", "expected": "one of grasp, reach"}]


async def test_progress_is_told_of_the_model_that_is_named(client, toy_request):
    body = toy_request(model="reach", cache="bypass")
    reply = await client.post("/v1/predictions", json=body, headers={"accept": "text/event-stream"})
    assert reply.status_code == 200
    assert '"model":"reach"' in reply.text.replace(" ", "")


async def test_every_model_is_listed_and_read(client):
    listed = (await client.get("/v1/models")).json()["models"]
    assert [model["id"] for model in listed] == ["grasp", "reach"]
    assert (await client.get("/v1/models/reach")).json()["revision"] == "1"
    check_problem(await client.get("/v1/models/push"), 404, "unknown_model")


async def test_an_observation_remembers_its_model(client, toy_request):
    upload = {"observation": toy_request()["observation"], "model": "reach"}
    held = (await client.post("/v1/observations", json=upload)).json()["observation_id"]
    named = frames_of(await predict(client, toy_request, model="reach"))
    assert frames_of(await predict(client, toy_request, observation=..., observation_id=held)) == named
    reply = await predict(client, toy_request, observation=..., observation_id=held, model="grasp")
    check_problem(reply, 410, "gone")


async def test_an_observation_is_not_used_by_another_version(client, toy_request, toy_folder):
    upload = {"observation": toy_request()["observation"], "model": "reach"}
    held = (await client.post("/v1/observations", json=upload)).json()["observation_id"]
    toy_folder.add("reach", "2", shift=0.3)
    assert (await client.post("/admin/models/reach/load")).status_code == 200
    reply = await predict(client, toy_request, observation=..., observation_id=held)
    check_problem(reply, 410, "gone")


async def test_a_session_remembers_its_model(client, toy_request):
    start = {"observation": toy_request()["observation"], "model": "reach", "seed": 7}
    session = (await client.post("/v1/sessions", json=start)).json()
    assert session["model"] == "reach"
    name = session["session_id"]
    step = {"future": toy_request()["future"]}
    stepped = await client.post(f"/v1/sessions/{name}/steps", json=step)
    assert stepped.status_code == 200, stepped.text
    assert (await client.get(f"/v1/sessions/{name}")).json()["model"] == "reach"
    fork = (await client.post(f"/v1/sessions/{name}/forks")).json()
    assert fork["model"] == "reach"
    assert (await client.post(f"/v1/sessions/{name}/reset")).json()["model"] == "reach"
    assert (await client.delete(f"/v1/sessions/{name}")).status_code == 204


def tensors(batch=1):
    contract, rng = toy_contract(), np.random.default_rng(3)
    camera, dim = contract.camera, contract.state.dim
    shapes = {
        "past_frames": (
            "UINT8",
            rng.integers(0, 256, (batch, contract.context_frames, camera.height, camera.width, 3)),
        ),
        "past_states": ("FP32", 0.1 * rng.standard_normal((batch, contract.context_frames, dim))),
        "future_states": ("FP32", 0.1 * rng.standard_normal((batch, contract.horizon, dim))),
    }
    inputs = [
        {"name": name, "datatype": kind, "shape": list(values.shape), "data": values.ravel().tolist()}
        for name, (kind, values) in shapes.items()
    ]
    return {"inputs": inputs, "outputs": [{"name": "mean"}], "parameters": {"seed": 5, "steps": 2}}


async def infer(client, name, version=None):
    path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
    return await client.post(f"{path}/infer", json=tensors())


async def test_the_tensor_door_knows_every_model_by_its_name_and_the_default_by_its_kind(client):
    default, grasp, reach = [(await infer(client, name)).json() for name in (PREDICTION, "grasp", "reach")]
    assert [reply["model_name"] for reply in (default, grasp, reach)] == [PREDICTION, "grasp", "reach"]
    assert default["outputs"][0]["data"] == grasp["outputs"][0]["data"] != reach["outputs"][0]["data"]
    assert (await infer(client, "reach", "1")).status_code == 200
    check_problem(await infer(client, "reach", "2"), 404, "unknown_model")
    metadata = (await client.get("/v2/models/reach")).json()
    assert (metadata["name"], metadata["versions"]) == ("reach", ["1"])
    check_problem(await client.get("/v2/models/reach_likelihood"), 409, "capability_missing")


async def test_the_index_of_the_tensor_door_lists_what_could_be_loaded(client, toy_folder):
    toy_folder.add("push", "1")
    index = {entry["name"]: entry for entry in (await client.post("/v2/repository/index")).json()}
    assert {name: entry["state"] for name, entry in index.items()} == {
        PREDICTION: "READY",
        "world_model_score": "READY",
        "grasp": "READY",
        "grasp_score": "READY",
        "reach": "READY",
        "reach_score": "READY",
        "push": "UNAVAILABLE",
    }
    assert index["push"]["reason"] == "not loaded"


async def test_the_tensor_door_loads_and_unloads(client, toy_folder):
    toy_folder.add("push", "1")
    assert (await client.post("/v2/repository/models/push/load")).content == b""
    assert (await infer(client, "push")).status_code == 200
    toy_folder.add("push", "2")
    body = {"parameters": {"version": "2"}}
    assert (await client.post("/v2/repository/models/push/load", json=body)).status_code == 200
    assert (await client.get("/v2/models/push")).json()["versions"] == ["2"]
    body = {"parameters": {"unload_dependents": False}}
    assert (await client.post("/v2/repository/models/push/unload", json=body)).status_code == 200
    check_problem(await infer(client, "push"), 404, "unknown_model")


async def test_no_model_comes_over_the_network(client):
    for parameters in ({"config": "{}"}, {"file:1/model.onnx": "AAAA"}):
        reply = await client.post("/v2/repository/models/reach/load", json={"parameters": parameters})
        check_problem(reply, 501, "extension_missing")


async def test_operators_see_swap_and_unload_models(client, toy_folder, toy_request):
    toy_folder.add("reach", "2", shift=0.3)
    listed = {model["name"]: model for model in (await client.get("/admin/models")).json()["models"]}
    assert listed["reach"] | {"state": "READY"} == {
        "name": "reach", "state": "READY", "version": "1", "adapter": None, "reason": "", "versions": ["1", "2"],
        "adapters": [],
    }  # fmt: skip
    first = frames_of(await predict(client, toy_request, model="reach"))
    loaded = (await client.post("/admin/models/reach/load")).json()
    assert (loaded["version"], loaded["state"]) == ("2", "READY")
    assert frames_of(await predict(client, toy_request, model="reach")) != first
    assert (await client.post("/admin/models/reach/load", json={"version": "1"})).status_code == 200
    assert frames_of(await predict(client, toy_request, model="reach")) == first
    assert (await client.post("/admin/models/reach/unload")).json()["state"] == "UNAVAILABLE"
    check_problem(await predict(client, toy_request, model="reach"), 404, "unknown_model")
    assert (await predict(client, toy_request)).json()["model"] == "grasp"


async def test_a_load_that_fails_says_why_and_the_old_version_answers(client, toy_folder, toy_request):
    first = frames_of(await predict(client, toy_request, model="reach"))
    toy_folder.add("reach", "2", fault="damaged")
    problem = check_problem(await client.post("/admin/models/reach/load"), 500, "model_fault")
    assert "differs from the manifest" in problem["detail"]
    assert str(toy_folder.path) not in str(problem)
    assert frames_of(await predict(client, toy_request, model="reach")) == first
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/admin/models/push/load", None, 404, "unknown_model"),
        ("/admin/models/..%2F..%2Fetc/load", None, 404, "not_found"),
        ("/admin/models/reach/load", {"version": "7"}, 404, "unknown_model"),
        ("/admin/models/reach/load", {"version": "../1"}, 404, "unknown_model"),
        ("/admin/models/reach/load", {"adapter": "night"}, 404, "unknown_model"),
        ("/admin/models/reach/load", {"path": "/etc"}, 422, "invalid_request"),
        ("/admin/models/reach/load", {"version": 1}, 422, "invalid_request"),
        ("/admin/models/push/unload", None, 404, "unknown_model"),
    ],
)
async def test_a_change_that_is_not_possible_is_refused(client, path, body, status, code):
    check_problem(await client.post(path, json=body) if body else await client.post(path), status, code)


async def test_pages_of_other_sites_change_no_models(client):
    for path in ("/admin/models/reach/unload", "/v2/repository/models/reach/unload"):
        reply = await client.post(path, headers={"origin": "http://elsewhere"})
        check_problem(reply, 403, "forbidden")


async def test_no_request_is_lost_while_versions_are_swapped(client, toy_folder, toy_request):
    toy_folder.add("reach", "2", shift=0.3)
    answers = {}
    for version in ("1", "2"):
        await client.post("/admin/models/reach/load", json={"version": version})
        answers[version] = frames_of(await predict(client, toy_request, model="reach"))
    is_over = asyncio.Event()
    wrong, seen = [], set()

    async def ask():
        while not is_over.is_set():
            reply = await predict(client, toy_request, model="reach")
            if reply.status_code != 200 or frames_of(reply) != answers[reply.json()["revision"]]:
                wrong.append(reply.text)
            seen.add(reply.json().get("revision"))

    askers = [asyncio.create_task(ask()) for _ in range(8)]
    for turn in range(10):
        body = {"version": "12"[turn % 2]}
        assert (await client.post("/admin/models/reach/load", json=body)).status_code == 200
    is_over.set()
    await asyncio.gather(*askers)
    assert (wrong, seen) == ([], {"1", "2"})
    assert sum(not engine.is_closed for engine in toy_folder.opened) == 2


async def test_messages_of_a_websocket_name_their_model(two_models, serving, connecting, toy_request):
    async with serving(two_models), connecting(two_models) as robot:
        for name in ("reach", "grasp"):
            answer = await robot.ask("predict", **toy_request(model=name))
            assert answer["body"]["model"] == name if "body" in answer else answer["model"] == name, answer


async def test_a_model_of_another_size_is_read_by_its_own_contract(client, toy_folder, toy_request):
    toy_folder.add("reach", "2", size=16)
    assert (await client.post("/admin/models/reach/load")).status_code == 200
    check_problem(await predict(client, toy_request, model="reach"), 422, "invalid_request")
    assert (await predict(client, toy_request, model="grasp")).status_code == 200
