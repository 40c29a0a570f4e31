import asyncio
import threading

import httpx
import pytest
import structlog

from foreframe_engines.errors import RuntimeUnavailable
from foreframe_engines.runtime.parity import TOLERANCES
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.swapping import SwappingRolloutEngine
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import EngineSettings, Settings, SettingsError, read_settings

pytestmark = pytest.mark.anyio


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_health_answers_while_the_model_warms_up_and_readiness_waits():
    warm = threading.Event()
    engine = ToyRolloutEngine(step_hook=lambda rows: warm.wait(20))
    app = create_app(Settings(), given(engine))

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json()["code"] == "not_ready"
        warm.set()
        await app.state.starting
        assert (await client.get("/readyz")).status_code == 200


async def test_stopping_ends_readiness_and_closes_the_engine(serving, toy_request):
    app = create_app(Settings(), given(engine := ToyRolloutEngine()))

    async with serving(app) as client:
        assert (await client.post("/v1/predictions", json=toy_request())).status_code == 200

    assert engine.is_closed
    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/v1/predictions", json=toy_request())).json()["code"] == "not_ready"


async def test_stopping_while_the_model_warms_up_ends_cleanly():
    entered, warm = threading.Event(), threading.Event()

    def hold(rows):
        entered.set()
        assert warm.wait(20)

    app = create_app(Settings(), given(engine := ToyRolloutEngine(step_hook=hold)))

    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(entered.wait, 20)
        asyncio.get_running_loop().call_later(0.01, warm.set)

    assert engine.is_closed


async def test_readiness_waits_for_the_likelihood_model_too(make_token_app):
    warm = threading.Event()
    app = make_token_app(ToyLikelihoodEngine(read_hook=lambda rows: warm.wait(20)))

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/readyz")).json()["code"] == "not_ready"
        assert (await client.post("/v1/likelihoods", json={})).json()["code"] in ("not_ready", "invalid_request")
        warm.set()
        await app.state.starting
        assert (await client.get("/readyz")).status_code == 200


async def test_stopping_closes_both_engines_on_the_device_s_thread(serving, make_token_app, likelihood_request):
    class NotingEngine(ToyLikelihoodEngine):
        def close(self):
            self.closed_by = threading.current_thread().name
            super().close()

    engine, rollout = NotingEngine(), ToyRolloutEngine(toy_contract(tokens=toy_tokens()))
    app = make_token_app(engine, rollout=rollout)

    async with serving(app) as client:
        assert (await client.post("/v1/likelihoods", json=likelihood_request())).status_code == 200

    assert (engine.closed_by, rollout.is_closed) == ("foreframe-device", True)
    async with client_of(app) as client:
        stopped = await client.post("/v1/likelihoods", json=likelihood_request())
        upload = await client.post("/v1/observations", json={"observation": likelihood_request()["observation"]})
    assert [stopped.json()["code"], upload.json()["code"]] == ["not_ready", "not_ready"]


async def test_a_likelihood_model_that_cannot_warm_up_ends_liveness(make_token_app):
    def fail(rows):
        raise RuntimeError("planted")

    app = make_token_app(engine := ToyLikelihoodEngine(read_hook=fail))

    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.starting
        health, readiness = await client.get("/healthz"), await client.get("/readyz")

    assert (health.status_code, readiness.status_code) == (500, 503)
    assert engine.is_closed


async def test_a_bundle_that_is_missing_ends_liveness_and_says_nothing_of_its_path(tmp_path):
    settings = Settings(engine=EngineSettings(bundle=tmp_path / "planted"))
    app = create_app(settings)

    with structlog.testing.capture_logs() as lines:
        async with app.router.lifespan_context(app), client_of(app) as client:
            await app.state.starting
            health, readiness = await client.get("/healthz"), await client.get("/readyz")

    assert (health.status_code, readiness.status_code) == (500, 503)
    assert "planted" not in health.text + readiness.text
    assert "the model could not be started" in [line["event"] for line in lines]


async def test_equal_requests_are_served_from_the_cache(client, engine, toy_request):
    first = (await client.post("/v1/predictions", json=toy_request())).json()
    num_steps = engine.calls["step"]
    second = (await client.post("/v1/predictions", json=toy_request())).json()

    assert (first["cache"], second["cache"]) == ("miss", "hit")
    assert second["frames"] == first["frames"]
    assert second["ensemble"]["from_cache"] == 1
    assert engine.calls["step"] == num_steps


async def test_a_shared_cache_that_is_not_there_changes_nothing(serving, toy_request, monkeypatch):
    monkeypatch.setenv("FOREFRAME_CACHE__REDIS_URL", "redis://127.0.0.1:1/0")

    async with serving(create_app(Settings(), given(ToyRolloutEngine()))) as client:
        reply = await client.post("/v1/predictions", json=toy_request())

    assert (reply.status_code, reply.json()["cache"]) == (200, "unavailable")


@pytest.mark.parametrize("secret", [None, "word"])
async def test_a_shared_cache_that_is_away_or_without_a_secret_is_a_warning_each(serving, secret):
    settings = read_settings({"cache": {"redis_url": "redis://127.0.0.1:1/0", "secret": secret}})
    with structlog.testing.capture_logs() as lines:
        async with serving(create_app(settings, given(ToyRolloutEngine()))):
            pass
    warned = [line["setting"] for line in lines if line["log_level"] == "warning"]
    expected = ["FOREFRAME_CACHE__REDIS_URL"] if secret else ["FOREFRAME_CACHE__SECRET", "FOREFRAME_CACHE__REDIS_URL"]
    assert warned == expected


async def test_a_folder_of_models_that_is_not_there_stops_the_start(tmp_path):
    with pytest.raises(SettingsError, match="FOREFRAME_MODELS__FOLDER"):
        create_app(read_settings({"models": {"folder": tmp_path / "typo"}}))


async def test_a_path_is_not_guessed(client):
    assert (await client.get("/healthz/")).json()["code"] == "not_found"
    wrong = await client.put("/v1/models")
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "GET")


@pytest.mark.parametrize("is_good", [True, False])
async def test_an_engine_that_takes_over_while_serving_is_measured_anew(serving, toy_request, is_good):
    ready, first, second = threading.Event(), ToyRolloutEngine(), ToyRolloutEngine()

    def prepare():
        assert ready.wait(20)
        if not is_good:
            raise RuntimeUnavailable("no such luck")
        return second

    engine = SwappingRolloutEngine(first, prepare, tolerance=TOLERANCES[Precision.FP32])
    engine.start()
    app = create_app(Settings(), given(engine))
    with structlog.testing.capture_logs() as lines:
        async with serving(app) as client:
            assert (await client.post("/v1/predictions", json=toy_request())).status_code == 200
            assert second.calls["encode"] == 0
            ready.set()
            async with asyncio.timeout(20):
                while not any(line["event"] == "handover" for line in lines):  # noqa: ASYNC110 - a log cannot be awaited
                    await asyncio.sleep(0.01)
            measured = second if is_good else first
            before = measured.calls["encode"]
            reply = await client.post("/v1/predictions", json=toy_request(sampling={"seed": 9}))
            assert reply.status_code == 200
    assert next(line for line in lines if line["event"] == "handover")["stage"] == ("serving" if is_good else "refused")
    assert (second.calls["encode"] > 2) == is_good
    assert measured.calls["encode"] >= before
    assert first.is_closed
    assert second.is_closed == is_good
