import re

import pytest

from foreframe_server.settings import HttpSettings

pytestmark = pytest.mark.anyio


async def test_health_readiness_version_and_limits_answer(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.get("/version")).json()["name"] == "foreframe"
    assert (await client.get("/v1/limits")).json()["max_body_bytes"] == 16 * 2**20


async def test_limits_name_what_may_be_held_and_what_may_wait(client):
    limits = (await client.get("/v1/limits")).json()

    assert (limits["observation_ttl_s"], limits["max_observation_ttl_s"]) == (60, 3600)
    assert limits["max_observation_bytes"] == 256 * 2**20
    assert (limits["max_pending_read_s"], limits["max_candidates"]) == (10, 256)
    assert (limits["max_message_bytes"], limits["max_in_flight"]) == (16 * 2**20, 32)


async def test_limits_list_every_bound_of_the_door_and_of_sessions(client):
    limits = (await client.get("/v1/limits")).json()

    bounds = [name for name in HttpSettings.model_fields if re.match(r"max_|min_|.*_timeout_s$|keep_alive", name)]
    assert len(bounds) == 11
    assert set(bounds) <= limits.keys() | limits["connections"].keys()
    assert limits["connections"]["max_headers"] == 64
    assert (limits["max_all_sessions_bytes"], limits["max_history_bytes"]) == (512 * 2**20, 16 * 2**20)
    assert (limits["max_pending_s"], limits["max_wrong_keys"]) == (30, 10)
    assert (limits["max_objectives"], limits["max_parts"], limits["max_guidance"]) == (16, 512, 30)
    assert limits["quota"] is None


async def test_metrics_count_requests_by_template_and_never_by_path(client, toy_request):
    await client.post("/v1/predictions", json=toy_request())
    await client.get("/v1/models/toy")
    await client.get("/v1/models/planted")
    before = {line.split(" ")[0] for line in (await client.get("/metrics")).text.splitlines()}

    for index in range(50):
        await client.get(f"/planted-{index}")
        await client.get(f"/v1/models/planted-{index}")
    text = (await client.get("/metrics")).text

    assert 'foreframe_requests_total{code="ok",route="/v1/predictions"} 1.0' in text
    assert 'route="/v1/models/{id}"' in text
    assert "planted" not in text
    new = {line.split(" ")[0] for line in text.splitlines()} - before
    assert {re.sub(r".*route=\"([^\"]*)\".*", r"\1", series) for series in new} <= {"other", "/metrics"}


async def test_every_stage_of_a_prediction_is_measured(client, toy_request):
    await client.post("/v1/predictions", json=toy_request())

    text = (await client.get("/metrics")).text

    for stage in ("receive", "decode", "denoise", "respond", "total"):
        assert f'foreframe_stage_seconds_count{{stage="{stage}"}} 1.0' in text
