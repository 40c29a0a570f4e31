"""Both clients over a scripted server: whatever one does, the other does."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import numpy as np
import pytest

from foreframe_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NonFinite,
    TimedOut,
    TransportError,
    UnknownModel,
)


def blocking(server, method, *arguments, **options):
    """Call one method of a fresh Client; return the answer and the pauses."""
    pauses: list[float] = []
    with Client(transport=httpx.MockTransport(server), sleep=pauses.append, api_key="k.s") as client:
        return getattr(client, method)(*arguments, **options), pauses


def awaiting(server, method, *arguments, **options):
    """Call one method of a fresh AsyncClient; return the answer and the pauses."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def call():
        async with AsyncClient(transport=httpx.MockTransport(server), sleep=sleep, api_key="k.s") as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call()), pauses


@pytest.fixture(params=[blocking, awaiting])
def call(request):
    return request.param


def test_a_prediction_comes_back(call, server, scene):
    prediction, _ = call(server, "predict", *scene.arrays)
    assert prediction.frames[:, 0, 0, 0].tolist() == [10, 20]
    assert server.paths() == ["/v1/models", "/v1/predictions"]


def test_the_request_says_what_was_asked(call, server, scene):
    call(
        server,
        "predict",
        *scene.arrays,
        frame_indices=np.array([1, 2]),
        ensemble=8,
        reducer="medoid",
        noise="iid",
        strategy="sample",
        steps=4,
        seed=np.int64(7),
        deadline_ms=60_000,
        on_deadline="fail",
        stream_id="arm",
        priority="bulk",
        variance="summary",
        members=True,
        cache="bypass",
        metadata={"run": "a", "n": 1},
    )
    (body,) = server.posted()
    camera = body["observation"]["cameras"]["head"]
    np.testing.assert_array_equal(camera.pop("data"), scene.frames)
    assert camera == {"encoding": "raw_rgb8", "width": 5, "height": 4}
    np.testing.assert_array_equal(body["observation"]["state"]["values"], scene.states.astype(np.float32))
    np.testing.assert_array_equal(body["future"].pop("values"), scene.future_states.astype(np.float32))
    assert 59_000 < body.pop("deadline_ms") <= 60_000
    del body["observation"]
    assert body == {
        "model": "toy",
        "future": {"kind": "state"},
        "frames": [1, 2],
        "ensemble": {"size": 8, "reducer": "medoid", "noise": "iid"},
        "sampling": {"strategy": "sample", "steps": 4, "seed": 7},
        "on_deadline": "fail",
        "stream_id": "arm",
        "priority": "bulk",
        "return": {"encoding": "raw", "variance": "summary", "members": True},
        "cache": "bypass",
        "metadata": {"run": "a", "n": 1},
    }


def test_what_is_left_out_is_left_to_the_server(call, server, scene):
    call(server, "predict", *scene.arrays)
    (body,) = server.posted()
    assert body["sampling"] == {"strategy": "sample"}
    assert not {"deadline_ms", "stream_id", "metadata"} & set(body)


def test_the_key_and_the_media_types_are_in_the_headers(call, server, scene):
    call(server, "predict", *scene.arrays)
    headers = server.requests[-1].headers
    assert headers["authorization"] == "Bearer k.s"
    assert headers["content-type"] == "application/msgpack"
    assert headers["accept"].startswith("application/msgpack")
    assert headers["user-agent"].startswith("foreframe-client/")


def test_a_given_camera_saves_asking_for_it(call, server, scene):
    call(server, "predict", *scene.arrays, camera="wrist")
    assert server.paths() == ["/v1/predictions"]
    assert list(server.posted()[0]["observation"]["cameras"]) == ["wrist"]


def test_a_named_models_camera_is_its_own(call, server, scene):
    call(server, "predict", *scene.arrays, model="toy")
    assert server.paths() == ["/v1/models/toy", "/v1/predictions"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("frames", np.zeros((3, 4, 5, 3), np.float32)),
        ("states", np.zeros(25)),
        ("future_states", np.full((2, 25), np.nan)),
        ("ensemble", 1.5),
        ("steps", "4"),
        ("seed", True),
        ("deadline_ms", 10.0),
        ("frame_indices", [0.5]),
    ],
)
def test_nothing_is_sent_when_an_argument_cannot_be(call, server, scene, argument, value):
    arrays = {"frames": scene.frames, "states": scene.states, "future_states": scene.future_states}
    with pytest.raises(InvalidRequest, match=f"^{argument} ") as caught:
        call(server, "predict", **{**arrays, argument: value})
    assert server.requests == []
    assert isinstance(caught.value, NonFinite) == (argument == "future_states")


def test_metadata_that_cannot_be_sent_is_refused(call, server, scene):
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        call(server, "predict", *scene.arrays, metadata={"x": object()})
    assert server.posted() == []


def test_refusals_are_raised_by_their_class(call, server, scene, refuse):
    server.script = [refuse("unknown_model", 404, retryable=False)]
    with pytest.raises(UnknownModel) as caught:
        call(server, "predict", *scene.arrays)
    assert caught.value.request_id == "r-9"


def test_a_refusal_that_may_pass_is_tried_again(call, server, scene, refuse):
    server.script = [refuse("overloaded", 503, retryable=True, retry_after_ms=20), *server.script]
    prediction, pauses = call(server, "predict", *scene.arrays)
    assert prediction.id == "p-1"
    assert len(pauses) == 1
    assert 0.02 <= pauses[0] <= 0.12


@pytest.mark.parametrize(
    ("error", "expected", "tries"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed, 3),
        (httpx.ConnectTimeout("slow"), ConnectionFailed, 3),
        (httpx.ReadTimeout("slow"), TimedOut, 1),
        (httpx.ReadError("reset"), TransportError, 1),
        (httpx.RemoteProtocolError("hung up"), TransportError, 1),
    ],
)
def test_failures_of_the_network_are_translated(call, server, scene, error, expected, tries):
    server.script = [error]
    with pytest.raises(TransportError) as caught:
        call(server, "predict", *scene.arrays)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error
    assert len(server.posted()) == tries


def test_contracts_are_described(call, server):
    (listed,), _ = call(server, "models")
    model, _ = call(server, "model", "toy")
    assert model == listed
    assert (model.id, model.context_frames, model.state_dim, model.cameras[0].width) == ("toy", 3, 25, 5)
    (schema,), _ = call(server, "state_schemas")
    assert (schema.name, schema.dim, schema.units) == ("eve25", 2, ("rad", "m"))


def test_operations_are_asked(call, server):
    assert call(server, "health")[0] is True
    assert call(server, "ready")[0] is False
    assert call(server, "version")[0]["version"] == "0.1.0"


def test_a_model_that_is_not_there_is_unknown(call, server):
    with pytest.raises(UnknownModel):
        call(server, "model", "other")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["secret\n", "sécret", "a\r\nb"])
def test_a_key_that_is_no_header_is_refused_without_being_shown(kind, key):
    with pytest.raises(InvalidRequest, match="api_key") as caught:
        kind(api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_environment_s_key_is_sent_unless_another_is_given(kind, monkeypatch):
    monkeypatch.setenv("FOREFRAME_API_KEY", "env.secret")
    sent = [kind(**options)._http.headers.get("authorization") for options in ({}, {"api_key": "k.s"}, {"api_key": ""})]
    assert sent == ["Bearer env.secret", "Bearer k.s", None]


def test_the_contract_is_learnt_once(server, scene):
    with Client(transport=httpx.MockTransport(server)) as client:
        for _ in range(3):
            client.predict(*scene.arrays)
    assert server.paths() == ["/v1/models"] + 3 * ["/v1/predictions"]


def test_the_contract_is_learnt_again_when_the_server_has_got_another(server, scene, refuse):
    server.script = [refuse("unknown_model", 404, retryable=False), *server.script]
    with Client(transport=httpx.MockTransport(server)) as client:
        with pytest.raises(UnknownModel):
            client.predict(*scene.arrays)
        client.predict(*scene.arrays)
    assert server.paths().count("/v1/models") == 2


def test_a_choice_of_models_or_cameras_is_left_to_the_caller(scene):
    camera = {"name": "head", "height": 4, "width": 5}
    model = {
        "family": "f",
        "revision": "r",
        "cameras": [camera, {**camera, "name": "wrist"}],
        "capabilities": ["predict"],
    }
    model.update(context_frames=3, horizon=2, fps=10.0, state_schema="s", state_dim=25)
    served = [{**model, "id": "a"}, {**model, "id": "b"}]

    def describe(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=served[0] if request.url.path.endswith("/a") else {"models": served})

    with Client(transport=httpx.MockTransport(describe)) as client:
        with pytest.raises(InvalidRequest, match=r"model must be named.* a, b"):
            client.predict(*scene.arrays)
        with pytest.raises(InvalidRequest, match=r"camera must be named.* head, wrist"):
            client.predict(*scene.arrays, model="a")


def test_both_clients_have_the_same_methods_and_arguments():
    names = {name for name in vars(Client) if not name.startswith("_")}
    assert names == {name for name in vars(AsyncClient) if not name.startswith("_")}
    for name in names:
        one, other = (str(inspect.signature(getattr(client, name))) for client in (Client, AsyncClient))
        assert one == other.replace("AsyncSession", "Session")


def test_signatures_show_what_callers_see():
    signature = inspect.signature(Client.predict)
    assert list(signature.parameters)[:4] == ["self", "frames", "states", "future_states"]
    assert signature.return_annotation == "Prediction"
    assert "retry" not in signature.parameters
