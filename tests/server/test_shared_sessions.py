"""Sessions that another server goes on with, over a Redis that works, lies or is not there."""

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import EnsembleSpec
from foreframe_server.calls import CachePolicy
from foreframe_server.errors import Gone, StepOutOfOrder
from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import Outcome, RedisLink, Reply, connect_redis
from foreframe_server.session_blob import CorruptSession, decode_session_blob, encode_session_blob
from foreframe_server.session_service import SessionService
from foreframe_server.session_store import SessionLimits, SessionStore
from foreframe_server.sessions import SessionSeed, StepAsk, StepSampling, UnknownSession
from foreframe_server.shared_sessions import SharedSessions

RNG = np.random.default_rng(0)
SEED = SessionSeed(RNG.integers(0, 256, (4, 8, 8, 3), np.uint8), RNG.normal(size=(4, 3)).astype(np.float32), seed=11)
FUTURE = RNG.normal(size=(8, 3)).astype(np.float32)
SECRET = b"s" * 32
PATIENCE_S = 20


@pytest.fixture
def call(make_call):
    return make_call(cache=CachePolicy.BYPASS)


@pytest.fixture
def replica(running):
    """Run a server's sessions, shared over a Redis."""

    @contextlib.asynccontextmanager
    async def serve(url, *, secret=SECRET, fingerprint="toy"):
        async with running() as core:
            link = RedisLink(connect_redis(url, 5.0), core.metrics, timeout_s=5.0)
            shared = SharedSessions(link, core.metrics, secret=secret, fingerprint=fingerprint)
            store = SessionStore(SessionLimits(), core.metrics, lambda: 0.0)
            service = SessionService(core.service, core.worker, store, core.metrics, shared=shared)
            try:
                yield service, shared
            finally:
                await service.close()

    return serve


class Shelf:
    """A Redis in this process; what is to happen next after a first write happens before anything else does."""

    def __init__(self):
        self.blobs = []
        self.on_written = None

    def can_call(self):
        return True

    async def call(self, *command):
        await asyncio.sleep(0)
        self.blobs.append(command[2])
        if len(self.blobs) == 1:
            asyncio.get_running_loop().call_soon(self.on_written)
        return Reply(Outcome.ANSWERED, b"OK")


def tell(story):
    async def scenario():
        async with asyncio.timeout(PATIENCE_S):
            return await story()

    return asyncio.run(scenario())


def test_another_server_goes_on_with_the_same_bytes(redis_server, replica, call):
    ensemble = EnsembleSpec(size=2)

    async def story():
        async with replica(redis_server.url) as (one, shared), replica(redis_server.url) as (other, _):
            session_id = (await one.create(SEED, call)).session_id
            for at in range(3):
                last = await one.step(session_id, StepAsk(FUTURE[at : at + 1], at + 1, ensemble=ensemble), call)
            await shared.settle()
            again = await other.step(session_id, StepAsk(FUTURE[2:3], 3, ensemble=ensemble), call)
            there = await other.step(session_id, StepAsk(FUTURE[3:4], 4), call)
            here = await one.step(session_id, StepAsk(FUTURE[3:4], 4), call)
            restarted = await other.reset(session_id)
            return last, again, there, here, restarted

    last, again, there, here, restarted = tell(story)
    assert again.is_repeat
    for name in ("frames", "members", "variance"):
        assert np.array_equal(getattr(last.prediction, name), getattr(again.prediction, name))
    assert np.array_equal(there.frames, here.frames)
    assert np.array_equal(restarted.context.frames, SEED.frames)


def test_a_server_that_was_left_behind_catches_up(redis_server, replica, call):
    async def story():
        async with replica(redis_server.url) as (one, shared), replica(redis_server.url) as (other, further):
            session_id = (await one.create(SEED, call)).session_id
            await one.step(session_id, StepAsk(FUTURE[:1], 1), call)
            await shared.settle()
            await other.step(session_id, StepAsk(FUTURE[1:2], 2), call)
            await other.step(session_id, StepAsk(FUTURE[2:3], 3), call)
            await further.settle()
            caught_up = await one.step(session_id, StepAsk(FUTURE[3:4], 4), call)
            with pytest.raises(StepOutOfOrder):
                await one.step(session_id, StepAsk(FUTURE[3:4], 9), call)
            return caught_up.step_id

    assert tell(story) == 4


@pytest.mark.parametrize("difference", [{"secret": b"x" * 32}, {"fingerprint": "another model"}])
def test_what_another_secret_or_model_wrote_is_no_session(redis_server, replica, call, difference):
    async def story():
        async with replica(redis_server.url) as (one, shared), replica(redis_server.url, **difference) as (other, _):
            session_id = (await one.create(SEED, call)).session_id
            await shared.settle()
            with pytest.raises(UnknownSession):
                await other.get(session_id)

    tell(story)


def test_another_caller_s_session_and_a_deleted_one_are_not_taken_up(redis_server, replica, call):
    mine = replace(call, tenant="mine")

    async def story():
        async with replica(redis_server.url) as (one, shared), replica(redis_server.url) as (other, _):
            session_id = (await one.create(SEED, mine)).session_id
            await shared.settle()
            with pytest.raises(UnknownSession):
                await other.get(session_id, tenant="other")
            await one.delete(session_id, tenant="mine")
            with pytest.raises(Gone):
                await one.get(session_id, tenant="mine")
            with pytest.raises(UnknownSession):
                await other.get(session_id, tenant="mine")

    tell(story)


def test_without_a_redis_sessions_go_on_here(redis_server, replica, call):
    async def story():
        async with replica(redis_server.url) as (one, _):
            session_id = (await one.create(SEED, call)).session_id
            redis_server.kill()
            return await one.step(session_id, StepAsk(FUTURE[:1]), call)

    assert tell(story).step_id == 1


class TestBlob:
    @pytest.fixture
    def session(self, running, call):
        async def story():
            async with running() as core:
                store = SessionStore(SessionLimits(), Metrics(), lambda: 0.0)
                service = SessionService(core.service, core.worker, store, core.metrics)
                session_id = (await service.create(SEED, call)).session_id
                ask = StepAsk(FUTURE[:2], sampling=StepSampling(seed=3), ensemble=EnsembleSpec(size=4, tolerance=0.5))
                await service.step(session_id, ask, call)
                await service.push(session_id, SEED.frames[:1], FUTURE[:1])
                session = await service.get(session_id)
                await service.close()
                return session

        return tell(story)

    def test_holds_what_the_next_step_needs(self, session):
        read = decode_session_blob(session.session_id, encode_session_blob(session, SECRET, "toy"), SECRET, "toy")

        assert (read.step_id, read.num_frames, read.seed, read.shadow) == (1, 1, 11, session.shadow)
        assert np.array_equal(read.context.frames, session.context.frames)
        assert np.array_equal(read.context.states, session.context.states)
        assert read.last.ask.is_like(session.last.ask)
        assert np.array_equal(read.last.answer.prediction.members, session.last.answer.prediction.members)
        assert not read.context.frames.flags.writeable

    def test_what_is_put_the_moment_a_write_has_ended_is_written_too(self, session):
        async def story():
            shelf = Shelf()
            shared = SharedSessions(shelf, Metrics(), secret=SECRET, fingerprint="toy")
            later = replace(session, step_id=2)
            shelf.on_written = lambda: shared.put_soon(later)
            shared.put_soon(session)
            await shared.settle()
            await shared.settle()
            return shelf.blobs

        *_, last = tell(story)
        assert decode_session_blob(session.session_id, last, SECRET, "toy").step_id == 2

    def test_every_changed_byte_is_found(self, session):
        blob = encode_session_blob(session, SECRET, "toy")
        for place in range(0, len(blob), 97):
            broken = bytearray(blob)
            broken[place] ^= 1
            with pytest.raises(CorruptSession):
                decode_session_blob(session.session_id, bytes(broken), SECRET, "toy")

    @pytest.mark.parametrize("blob", [b"", b"x", b"x" * 100])
    def test_other_bytes_are_no_session(self, session, blob):
        with pytest.raises(CorruptSession):
            decode_session_blob(session.session_id, blob, SECRET, "toy")

    def test_another_session_s_bytes_are_not_this_one(self, session):
        with pytest.raises(CorruptSession):
            decode_session_blob("other", encode_session_blob(session, SECRET, "toy"), SECRET, "toy")
