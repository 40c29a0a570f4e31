import pytest

pytestmark = pytest.mark.anyio


async def test_a_server_that_did_nothing_yet_says_so(client):
    status = (await client.get("/v1/status")).json()

    assert status["is_ready"] is True
    assert (status["requests"], status["refused"], status["latency"]) == (0, 0, [])


async def test_work_is_counted_and_bookkeeping_is_not(client, toy_request):
    await client.post("/v1/predictions", json=toy_request(deadline_ms=60_000))
    await client.post("/v1/predictions", json=toy_request(deadline_ms=60_000))
    await client.post("/v1/predictions", json={})
    await client.get("/v1/models")

    status = (await client.get("/v1/status")).json()

    assert (status["requests"], status["refused"]) == (3, 1)
    assert status["deadlines"] == {"met": 2, "degraded": 0, "late": 0, "exceeded": 0}
    assert status["cache"] == {"lookups": 2, "hits": 1}
    counts = [bucket["count"] for bucket in status["latency"]]
    assert counts == sorted(counts)
    assert status["latency"][-1] == {"at_most_s": None, "count": 3}
