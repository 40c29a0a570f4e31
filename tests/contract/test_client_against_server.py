"""The real client against the real app with a toy engine: what one writes the other reads, field for field."""

import asyncio
import base64
import contextlib
import io
import typing
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import numpy as np
import pytest
from PIL import Image

from foreframe_client import (
    AsyncClient,
    CameraMissing,
    InvalidRequest,
    Prediction,
    ServerError,
    StateCheck,
    StateDimMismatch,
    UnknownModel,
)
from foreframe_client import _types as words
from foreframe_engines import EnsembleStatistics, NoisePlan
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract()
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (CONTRACT.context_frames, 8, 8, 3), np.uint8)
STATES = RNG.normal(size=(CONTRACT.context_frames, 3))
FUTURE = RNG.normal(size=(CONTRACT.horizon, 3))

Story = Callable[[AsyncClient], Awaitable[object]]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[httpx.ASGITransport]:
    """Run the app until the end of the block; it is ready inside."""
    app = create_app(Settings(), given(ToyRolloutEngine(CONTRACT)))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), asyncio.timeout(20):
        async with AsyncClient(transport=transport) as client:
            while not await client.ready():  # noqa: ASYNC110 - readiness is only told to those who ask
                await asyncio.sleep(0)
        yield transport


def tell(story: Story) -> object:
    """Run a story with a client of a running app."""

    async def run() -> object:
        async with running() as transport, AsyncClient(transport=transport) as client:
            return await story(client)

    return asyncio.run(run())


def predict(**options: object) -> Prediction:
    given = {"frames": FRAMES, "states": STATES, "future_states": FUTURE, "seed": 7, **options}
    return tell(lambda client: client.predict(**given))


def choices() -> list[tuple[str, str]]:
    """Every word that the client's types offer, by its argument."""
    offered = {
        "reducer": words.Reducer,
        "noise": words.Noise,
        "strategy": words.Strategy,
        "on_deadline": words.OnDeadline,
        "priority": words.Priority,
        "variance": words.Variance,
        "cache": words.CachePolicy,
    }
    return [(name, word) for name, kind in offered.items() for word in typing.get_args(kind)]


def test_the_contract_is_the_engines():
    models, model, schemas = tell(
        lambda client: asyncio.gather(client.models(), client.model("toy"), client.state_schemas())
    )
    assert models == (model,)
    assert (model.id, model.family, model.revision) == (CONTRACT.model, CONTRACT.family, CONTRACT.revision)
    assert (model.context_frames, model.horizon, model.fps) == (4, 8, 10.0)
    assert (model.state_schema, model.state_dim) == (CONTRACT.state.name, CONTRACT.state.dim)
    assert [(camera.name, camera.height, camera.width) for camera in model.cameras] == [("head", 8, 8)]
    assert schemas[0].names == CONTRACT.state.names
    assert schemas[0].units == CONTRACT.state.units


def test_operations_answer():
    alive, ready, version = tell(lambda client: asyncio.gather(client.health(), client.ready(), client.version()))
    assert alive
    assert ready
    assert version["name"] == "foreframe"


def test_a_server_that_is_still_opening_its_model_is_alive_and_not_ready():
    async def ask() -> tuple[bool, bool]:
        app = create_app(Settings(), given(ToyRolloutEngine(CONTRACT)))
        async with AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.health(), await client.ready()

    assert asyncio.run(ask()) == (True, False)


def test_an_ensemble_comes_back_whole():
    prediction = predict(ensemble=4, members=True, steps=3)
    assert prediction.frames.shape == (8, 8, 8, 3)
    assert prediction.members.shape == (4, 8, 8, 8, 3)
    assert prediction.frame_indices.tolist() == list(range(1, 9))
    np.testing.assert_allclose(prediction.times_s, np.arange(1, 9) / 10)
    assert (prediction.num_members, prediction.requested_members, prediction.steps) == (4, 4, 3)
    assert (prediction.seed, prediction.strategy, prediction.cache) == (7, "sample", "miss")
    assert prediction.deadline_met
    assert prediction.degraded is None
    assert prediction.timings_ms["total"] > 0


@pytest.mark.parametrize("noise", ["iid", "antithetic"])
def test_the_variance_is_that_of_the_members(noise):
    prediction = predict(ensemble=4, members=True, noise=noise)
    statistics = EnsembleStatistics.of(prediction.members)
    expected = statistics.variance(NoisePlan(noise))
    np.testing.assert_allclose(prediction.variance, expected, atol=1e-6)
    np.testing.assert_allclose(prediction.spread_per_frame, np.sqrt(expected.mean(axis=(1, 2))), atol=1e-5)
    assert prediction.standard_error == pytest.approx(statistics.standard_error(NoisePlan(noise)), rel=1e-4)
    assert (prediction.correlation is None) == (noise == "iid")
    assert prediction.effective_members is not None


def test_a_tolerance_ends_an_ensemble_early_without_degrading_it():
    prediction = predict(ensemble=32, noise="iid", tolerance=0.5)
    assert prediction.num_members == 2
    assert prediction.standard_error <= 0.5
    assert prediction.degraded is None


def test_one_member_has_no_variance_and_the_server_says_so():
    prediction = predict(strategy="posterior_mean", variance="map")
    assert prediction.variance is None
    assert prediction.spread_per_frame is None
    assert prediction.members is None
    assert [notice.code for notice in prediction.warnings] == ["spread_unknown"]


def test_defaults_bring_no_warning():
    assert predict().warnings == ()


def test_states_by_name_and_in_other_units_are_put_right():
    """Rows in another order and unit are answered as the same rows in the schema's, and said to have been changed."""
    state = CONTRACT.state
    units = {name: "deg" if unit == "rad" else unit for name, unit in zip(state.names, state.units, strict=True)}
    names = state.names[::-1]
    assert "rad" in state.units
    assert names != state.names
    scale = np.array([180 / np.pi if unit == "rad" else 1.0 for unit in state.units])
    sent = {
        "states": (STATES * scale)[:, ::-1],
        "future_states": (FUTURE * scale)[:, ::-1],
        "state_names": names,
        "state_units": [units[name] for name in names],
    }
    changed = predict(**sent)
    assert {notice.code for notice in changed.warnings} == {"states_reordered", "units_converted"}
    np.testing.assert_allclose(changed.frames.astype(int), predict().frames.astype(int), atol=1)


def test_states_are_checked_as_a_prediction_would_read_them():
    units = ["deg" if unit == "rad" else unit for unit in CONTRACT.state.units]

    async def check(client: AsyncClient) -> tuple[StateCheck, StateCheck]:
        return await client.check_states(STATES), await client.check_states(
            STATES, schema=CONTRACT.state.name, state_names=CONTRACT.state.names, state_units=units
        )

    plain, converted = tell(check)
    assert (plain.schema, plain.num_rows) == (CONTRACT.state.name, len(STATES))
    np.testing.assert_allclose(plain.first_row, STATES[0], rtol=1e-5)
    assert "units_converted" in {notice.code for notice in converted.warnings}
    assert not np.allclose(converted.first_row, STATES[0])


@pytest.mark.parametrize(("selection", "expected"), [("last", [8]), ([1, 3], [1, 3]), (np.array([2]), [2])])
def test_only_the_frames_asked_for_come_back(selection, expected):
    prediction = predict(frame_indices=selection)
    assert prediction.frame_indices.tolist() == expected
    np.testing.assert_array_equal(prediction.frames, predict().frames[np.array(expected) - 1])


@pytest.mark.parametrize(("name", "word"), choices())
def test_every_word_that_the_client_offers_is_understood(name, word):
    ensemble = 1 if word == "posterior_mean" else 2
    assert predict(ensemble=ensemble, deadline_ms=20_000, stream_id="arm", **{name: word}).id


def test_metadata_of_every_kind_is_accepted():
    assert predict(metadata={"run": "a", "n": 1, "x": 0.5, "is_real": False, "note": None}).id


def test_an_equal_call_is_answered_from_the_cache():
    async def twice(client: AsyncClient) -> list[Prediction]:
        return [await client.predict(FRAMES, STATES, FUTURE, seed=1, ensemble=2) for _ in range(2)]

    first, second = tell(twice)
    assert (first.cache, second.cache) == ("miss", "hit")
    np.testing.assert_array_equal(first.frames, second.frames)


def test_arrays_and_pictures_say_the_same():
    """What goes over the binary wire and comes back is what base64 PNG in JSON brings."""
    body = {
        "observation": {
            "cameras": {"head": {"encoding": "png", "frames": [png(frame) for frame in FRAMES]}},
            "state": {"values": STATES.astype(np.float32).tolist()},
        },
        "future": {"values": FUTURE.astype(np.float32).tolist()},
        "sampling": {"seed": 7},
    }

    async def ask() -> list[np.ndarray]:
        async with running() as transport, httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            reply = await http.post("/v1/predictions", json=body)
        return [unpng(frame["image"]["data"]) for frame in reply.raise_for_status().json()["frames"]]

    np.testing.assert_array_equal(asyncio.run(ask()), predict().frames)


def png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def unpng(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize(
    ("change", "error", "pointer"),
    [
        ({"model": "other", "camera": "head"}, UnknownModel, "/model"),
        ({"camera": "wrist"}, CameraMissing, "/observation/cameras"),
        ({"frames": FRAMES[:3]}, InvalidRequest, "/observation/cameras/head"),
        ({"frames": FRAMES[:, :4]}, InvalidRequest, "/observation/cameras/head"),
        ({"states": STATES[:, :2]}, StateDimMismatch, "/observation/state/values"),
        ({"future_states": np.zeros((9, 3))}, StateDimMismatch, "/future/values"),
        ({"frame_indices": [9]}, InvalidRequest, "/frames"),
        ({"ensemble": 33}, InvalidRequest, "/ensemble/size"),
        ({"seed": -1}, InvalidRequest, "/sampling/seed"),
        ({"deadline_ms": 700_000}, InvalidRequest, "/deadline_ms"),
    ],
)
def test_a_refusal_names_what_was_wrong(change, error, pointer):
    with pytest.raises(error) as caught:
        predict(**change)
    assert caught.value.reasons[0].pointer.startswith(pointer)
    assert not caught.value.is_retryable
    assert caught.value.request_id


def test_a_path_that_the_server_does_not_have_keeps_its_code():
    with pytest.raises(ServerError) as caught:
        tell(lambda client: client.model("a/b"))
    assert caught.value.status == 404
