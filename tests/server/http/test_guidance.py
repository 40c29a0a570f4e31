"""Guidance goes from a request to every step of its members; a model without guidance says so."""

from dataclasses import replace

import pytest

from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def seen():
    return set()


@pytest.fixture
def guided_app(seen):
    base = toy_contract()
    contract = replace(base, sampler=replace(base.sampler, guidance=1.5))
    engine = ToyRolloutEngine(contract, step_hook=lambda rows: seen.update(row.guidance for row in rows))
    return create_app(Settings(), given(engine))


@pytest.mark.parametrize(
    ("asked", "stepped"),
    [({}, 1.5), ({"guidance": 1.0}, 1.0), ({"guidance": 4.0}, 4.0), ({"strategy": "posterior_mean"}, 1.5)],
)
async def test_every_step_has_the_guidance_asked_for_or_the_models(
    guided_app, serving, toy_request, seen, asked, stepped
):
    async with serving(guided_app) as client:
        seen.clear()  # the warm-up's
        reply = await client.post("/v1/predictions", json=toy_request(sampling=asked))
    assert reply.status_code == 200, reply.text
    assert seen == {stepped}


async def test_another_guidance_is_another_question(guided_app, serving, toy_request):
    async with serving(guided_app) as client:
        results = []
        for guidance in (1.0, 2.0, 2.0):
            body = toy_request(sampling={"seed": 1, "guidance": guidance})
            results.append((await client.post("/v1/predictions", json=body)).json()["cache"])
    assert results == ["miss", "miss", "hit"]


async def test_the_contract_tells_guidance_and_solver(guided_app, serving):
    async with serving(guided_app) as client:
        sampler = (await client.get("/v1/models")).json()["models"][0]["sampler"]
    assert (sampler["guidance"], sampler["solver"]) == (1.5, "euler")


@pytest.mark.parametrize("guidance", [-0.5, 31, True, "2", None])
async def test_absurd_guidance_is_refused_and_null_is_none_given(guided_app, serving, toy_request, guidance):
    async with serving(guided_app) as client:
        reply = await client.post("/v1/predictions", json=toy_request(sampling={"guidance": guidance}))
    assert reply.status_code == (200 if guidance is None else 422), reply.text
