"""The real client's sessions against the real app with a toy engine: what one writes the other reads."""

import asyncio

import httpx
import numpy as np

from foreframe_client import AsyncClient, Gone, UnknownModel
from foreframe_engines.testing import ToyRolloutEngine, toy_contract
from foreframe_server.app import create_app
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract()
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (CONTRACT.context_frames, 8, 8, 3), np.uint8)
STATES = RNG.normal(size=(CONTRACT.context_frames, 3)).astype(np.float32)
FUTURE = RNG.normal(size=(20, 3)).astype(np.float32)


def tell(story):
    """Run a story with a client of a running app."""

    async def run():
        app = create_app(Settings(), given(ToyRolloutEngine(CONTRACT)))
        async with app.router.lifespan_context(app), asyncio.timeout(20):
            await app.state.starting
            async with AsyncClient(transport=httpx.ASGITransport(app)) as client:
                return await story(client)

    return asyncio.run(run())


def test_a_session_steps_as_predictions_do():
    async def story(client):
        frames, states = FRAMES, STATES
        async with await client.open_session(frames, states, seed=1) as session:
            for rows in (FUTURE[:1], FUTURE[1:4], FUTURE[4:12]):
                step = await session.step(rows, ensemble=2)
                alone = await client.predict(frames[-4:], states[-4:], rows, seed=step.seed, ensemble=2, cache="bypass")
                assert np.array_equal(step.frames, alone.frames)
                assert np.array_equal(step.variance, alone.variance)
                frames, states = np.concatenate([frames, step.frames]), np.concatenate([states, rows])
            status = await session.status()
        return step, status

    step, status = tell(story)
    assert (step.step_id, step.committed_step_id, step.is_repeat) == (3, 3, False)
    assert (status.frames, status.committed_step_id, status.rollback_from) == (12, 3, 0)
    assert np.array_equal(status.state, FUTURE[11])


def test_a_long_chunk_comes_in_windows():
    async def story(client):
        async with await client.open_session(FRAMES, STATES) as session:
            return await session.step(FUTURE, members=True, frame_indices=[1, 20])

    step = tell(story)
    assert step.frames.shape == (2, 8, 8, 3)
    assert step.members.shape == (1, 2, 8, 8, 3)
    assert step.frame_indices.tolist() == [1, 20]


def test_forks_pushes_rollbacks_and_resets_are_understood():
    async def story(client):
        held = await client.observe(FRAMES, STATES)
        session = await client.open_session(observation=held, seed=1)
        first = await session.step(FUTURE[:2])
        fork = await session.fork()
        one, other = await session.step(FUTURE[2:3]), await fork.step(FUTURE[2:3])
        assert np.array_equal(one.frames, other.frames)
        assert (await fork.rollback(1)).committed_step_id == 1
        assert (await fork.step(FUTURE[2:3])).step_id == 2
        (compared,) = await session.push(first.frames[:1], FUTURE[:1])
        shadow = (await session.status()).shadow
        assert (compared.psnr_db, shadow.count, shadow.psnr_db) == (100, 1, 100)
        await session.reset()
        again = await session.step(FUTURE[:2])
        await session.reset(FRAMES[::-1], STATES, seed=2)
        elsewhere = await session.step(FUTURE[:2])
        await fork.close()
        return first, again, elsewhere

    first, again, elsewhere = tell(story)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, elsewhere.frames)


def test_a_session_that_ended_is_gone_and_closing_it_again_is_no_error():
    async def story(client):
        session = await client.open_session(FRAMES, STATES)
        await session.close()
        await session.close()
        found = []
        for name in (session.session_id, "never"):
            session._opened.session_id = name
            try:
                await session.step(FUTURE[:1])
            except (Gone, UnknownModel) as error:
                found.append(type(error))
        return found

    assert tell(story) == [Gone, UnknownModel]
