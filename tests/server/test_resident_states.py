"""A server whose engine leaves states on the device answers what one answers whose engine does not."""

import asyncio
from dataclasses import replace

import httpx
import numpy as np

from foreframe_client import AsyncClient, Objective
from foreframe_engines import GRAPHS, Bundle, GraphRolloutEngine, builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.resident import DeviceRow
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

BUNDLE = Bundle.open(builtin_bundle())
CONTRACT = replace(BUNDLE.contract, buckets=(1, 2), tokens=None)
CLIP = load_clips(BUNDLE.path / "clips.npz")[0]
SEEN = CONTRACT.context_frames


class Watched(GraphRolloutEngine):
    """Remembers what kind of states it was asked to step."""

    def step(self, rows):
        self.kinds = {*getattr(self, "kinds", set()), *(type(row.latents) for row in rows)}
        return super().step(rows)


def open_engine(*, is_resident):
    sessions = {graph: OrtSession(BUNDLE.graph_path(graph), num_threads=1) for graph in GRAPHS}
    return Watched(CONTRACT, sessions, is_resident=is_resident)


def tell(story, engine):
    async def run():
        app = create_app(Settings(), given(engine, None))
        client = AsyncClient(transport=httpx.ASGITransport(app))
        async with app.router.lifespan_context(app), client, asyncio.timeout(60):
            while not await client.ready():  # noqa: ASYNC110 - readiness is only told to those who ask
                await asyncio.sleep(0)
            return await story(client)

    return asyncio.run(run())


def both(story):
    plain, resident = (open_engine(is_resident=is_resident) for is_resident in (False, True))
    answers = tell(story, plain), tell(story, resident)
    assert plain.kinds == {np.ndarray}
    assert DeviceRow in resident.kinds
    return answers


def test_predictions_are_equal():
    async def story(client):
        shown = CLIP.frames[:SEEN], CLIP.states[:SEEN], CLIP.states[SEEN : SEEN + 4]
        sharp = await client.predict(*shown, ensemble=3, steps=2, seed=1, members=True)
        mean = await client.predict(*shown, strategy="posterior_mean", seed=1)
        return sharp.members, mean.frames

    (members, mean), (resident_members, resident_mean) = both(story)
    np.testing.assert_array_equal(resident_members, members)
    np.testing.assert_array_equal(resident_mean, mean)


def test_scores_that_look_at_latents_are_equal():
    async def story(client):
        plans = np.stack([CLIP.states[SEEN : SEEN + 4], CLIP.states[SEEN + 4 : SEEN + 8]])
        goal = Objective.goal_image(CLIP.frames[SEEN + 3], metric="latent")
        scored = await client.score(CLIP.frames[:SEEN], CLIP.states[:SEEN], candidates=plans, objectives=[goal], seed=2)
        return np.array([candidate.cost for candidate in scored.candidates])

    costs, resident_costs = both(story)
    np.testing.assert_array_equal(resident_costs, costs)
