"""Both clients over a scripted server: whatever one does, the other does."""

from __future__ import annotations

import asyncio
import inspect
import pydoc
import re

import httpx
import numpy as np
import pytest

from foreframe_client import (
    AsyncClient,
    AsyncSession,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NonFinite,
    Objective,
    Observation,
    Overloaded,
    ProtocolError,
    ServerError,
    Session,
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


def ask_unreachable(stream: bool, **options: object) -> None:
    """Ask with a Client."""
    with Client(sleep=lambda _: None, **options) as client:
        list(client.predict_stream(**FILLED)) if stream else client.version()


def await_unreachable(stream: bool, **options: object) -> None:
    """Ask with an AsyncClient."""

    async def sleep(_seconds: float) -> None:
        return

    async def ask() -> None:
        async with AsyncClient(sleep=sleep, **options) as client:
            await (client.predict_stream(**FILLED).__anext__() if stream else client.version())

    asyncio.run(ask())


FILLED = {"frames": np.zeros((3, 4, 5, 3), np.uint8), "states": np.zeros((3, 25)), "future_states": np.zeros((2, 25))}


@pytest.mark.parametrize("ask", [ask_unreachable, await_unreachable])
@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_is_not_reached_is_named_without_its_password(ask, stream):
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    said = r"^http://robot:8123 was not reached \(ConnectError: refused\); is `foreframe serve` running there\?$"
    with pytest.raises(ConnectionFailed, match=said):
        ask(stream, base_url="http://joe:pass@robot:8123", transport=httpx.MockTransport(refuse))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("address", ["localhost:8123", "robot", "", "ws://robot:8000"])
def test_an_address_without_its_scheme_is_refused_at_once(kind, address):
    with pytest.raises(InvalidRequest, match=r"^base_url must begin with http:// or https://"):
        kind(address)


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


@pytest.mark.parametrize("method", ["ready", "health"])
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (httpx.Response(404, html="<html>File not found</html>"), ServerError),
        (httpx.Response(200, html="<html>It works!</html>"), ProtocolError),
        (httpx.Response(503, html="<html>no upstream</html>"), ServerError),
        (httpx.Response(200, json={}), ProtocolError),
    ],
)
def test_another_kind_of_server_is_never_just_not_ready(call, method, reply, error):
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(reply.status_code, content=reply.content, headers=reply.headers)

    with pytest.raises(error):
        call(answer, method)


def test_another_refusal_is_not_just_not_ready(call, refuse):
    for method, code in (("ready", "overloaded"), ("health", "overloaded")):
        with pytest.raises(Overloaded):
            call(lambda _request, code=code: refuse(code, 503, retryable=True), method)
    assert call(lambda _request: refuse("model_fault", 500, retryable=False), "health")[0] is False


@pytest.mark.parametrize(("options", "asked"), [({}, "none"), ({"ensemble": 2}, "map"), ({"variance": "map"}, "map")])
def test_a_variance_is_asked_for_where_there_can_be_one(call, server, scene, options, asked):
    call(server, "predict", *scene.arrays, **options)
    assert server.posted()[0]["return"]["variance"] == asked


WRITTEN = {"state_names": ["b", "a"], "state_units": ("deg", "mm")}


@pytest.mark.parametrize("method", ["predict", "observe", "open_session", "likelihood", "score"])
def test_names_and_units_of_states_go_with_the_observation(call, server, scene, method):
    more = {
        "predict": {"future_states": scene.future_states},
        "likelihood": {"target": scene.frames, "target_states": scene.states},
        "score": {"candidates": scene.future_states[None], "objectives": [Objective.smoothness()]},
    }
    server.script = [httpx.Response(200, json={})]  # only what is sent matters
    with pytest.raises(ProtocolError):
        call(server, method, scene.frames, scene.states, **more.get(method, {}), **WRITTEN)
    (body,) = server.posted()
    state = body.pop("observation")["state"]
    assert (state["names"], state["units"]) == (["b", "a"], ["deg", "mm"])
    assert "'mm'" not in str(body)  # the observation's hold for every other state


def test_states_are_as_the_schema_has_them_by_default(call, server, scene):
    call(server, "predict", *scene.arrays)
    assert set(server.posted()[0]["observation"]["state"]) == {"values"}


def test_an_uploaded_observation_has_its_names_and_units(call, server, scene):
    with pytest.raises(InvalidRequest, match="which has its own"):
        call(server, "predict", None, None, scene.future_states, observation=Observation("o-1", 60.0), **WRITTEN)
    assert server.requests == []


@pytest.mark.parametrize(("named", "path"), [({}, "eve25"), ({"schema": "a b"}, "a%20b")])
def test_states_are_tried_without_a_prediction(call, server, answer, scene, named, path):
    odd = {"code": "units_suspicious", "pointer": "/values", "message": "looks like degrees"}
    server.script = [answer({"name": "eve25", "rows": 3, "dim": 2, "first_row": [0.5, 1.0], "warnings": [odd]})]
    checked, _ = call(server, "check_states", scene.states, **named, **WRITTEN)

    (body,) = server.posted()
    np.testing.assert_array_equal(body["values"], scene.states.astype(np.float32))
    assert (body["names"], body["units"]) == (["b", "a"], ["deg", "mm"])
    assert server.requests[-1].url.raw_path.decode() == f"/v1/state-schemas/{path}/check"
    assert (checked.schema, checked.num_rows, checked.first_row.tolist()) == ("eve25", 3, [0.5, 1.0])
    assert [notice.code for notice in checked.warnings] == ["units_suspicious"]


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
        one, other = (inspect.signature(getattr(client, name)).parameters for client in (Client, AsyncClient))
        assert str(one) == str(other)


ANSWERS = {
    "predict": "Prediction",
    "likelihood": "Likelihood",
    "score": "Scores",
    "observe": "HeldObservation",
    "forget": "None",
    "open_session": "Session",
    "models": "Tuple[Model, ...]",
    "model": "Model",
    "state_schemas": "Tuple[StateSchema, ...]",
    "check_states": "StateCheck",
    "ready": "bool",
    "health": "bool",
    "version": "Mapping[str, object]",
    "model_statuses": "Tuple[ModelStatus, ...]",
    "load_model": "ModelStatus",
    "unload_model": "ModelStatus",
    "close": "None",
}
SESSION_ANSWERS = {
    "step": "StepPrediction",
    "push": "Tuple[Compared, ...]",
    "fork": "Session",
    "rollback": "SessionStatus",
    "reset": "SessionStatus",
    "status": "SessionStatus",
    "close": "None",
}
ASYNC = {"observe": "AsyncHeldObservation", "open_session": "AsyncSession", "fork": "AsyncSession"}
STREAMS = {
    Client: "Generator[Union[Progress, Prediction], None, None]",
    AsyncClient: "AsyncGenerator[Union[Progress, Prediction], None]",
}


@pytest.mark.parametrize("kind", [Client, AsyncClient, Session, AsyncSession])
def test_help_shows_what_every_method_returns(kind):
    is_session, is_async = kind in (Session, AsyncSession), kind in (AsyncClient, AsyncSession)
    expected = dict(SESSION_ANSWERS) if is_session else {**ANSWERS, "predict_stream": STREAMS[kind]}
    if is_async:
        expected.update((name, answer) for name, answer in ASYNC.items() if name in expected)
    methods = {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and name[0] != "_"}
    assert {name: inspect.signature(each).return_annotation for name, each in methods.items()} == expected
    for name, each in methods.items():
        (title,) = [line for line in pydoc.plain(pydoc.render_doc(each)).splitlines() if f"{name}(self" in line]
        assert title.endswith(f"-> {expected[name]!r}")
        assert not re.search(r"Flow|calls|wire", title)


def test_signatures_show_what_callers_see():
    signature = inspect.signature(Client.predict)
    assert list(signature.parameters)[:4] == ["self", "frames", "states", "future_states"]
    assert signature.return_annotation == "Prediction"
    assert "retry" not in signature.parameters


def test_help_says_how_long_a_silent_server_is_waited_for():
    for kind in (Client, AsyncClient):
        assert "given up on about a second after" in " ".join(kind.predict.__doc__.split())
