import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import reading as reference
from foreframe_engines.nats import TopKDefinition, count_nats, top_k_cross_entropy
from foreframe_engines.surprise import calibrate_surprise
from foreframe_engines.testing import ToyLikelihoodEngine, toy_contract, toy_tokens
from foreframe_server.context_encoder import ContextEncoder
from foreframe_server.disconnects import ClientLeft
from foreframe_server.errors import DeadlineExceeded, ModelFault, Overloaded
from foreframe_server.likelihood_service import LikelihoodService
from foreframe_server.likelihoods import LikelihoodQuery, Scenario, TopK
from foreframe_server.observations import StoredObservation

CALIBRATION = calibrate_surprise([2.0, 4.0, 6.0, 8.0])


@contextlib.asynccontextmanager
async def run_service(reading, engine=None, calibration=None, **limits):
    async with reading(engine, **limits) as running:
        service = LikelihoodService(running.reader, running.core.metrics, calibration, **clock_of(limits))
        yield service, running


def clock_of(limits):
    return {"clock": limits["clock"]} if "clock" in limits else {}


def query_of(clip, scenario=Scenario.TEACHER_FORCED, top_k=None):
    observation = StoredObservation(clip.frames, clip.states)
    return LikelihoodQuery(observation, clip.future, clip.ids, None, scenario, top_k)


def expected_scores(clip, scenario=Scenario.TEACHER_FORCED, top_k=None):
    engine = ToyLikelihoodEngine()
    context = reference.read_history(engine, engine.tokenize(clip.frames), clip.states)
    if scenario is Scenario.TEACHER_FORCED:
        return reference.teacher_forced(engine, context, clip.ids, clip.future, top_k)
    return reference.greedy_rollout(engine, context, clip.future, clip.ids, top_k)


def ask(reading, query, call, calibration=None):
    async def scenario():
        async with run_service(reading, calibration=calibration) as (service, running):
            answer = await service.score(query, call)
            return answer, running.core.count("foreframe_bits_per_token_sum")

    return asyncio.run(scenario())


@pytest.mark.parametrize("scenario", Scenario)
@pytest.mark.parametrize("definition", TopKDefinition)
def test_numbers_are_those_of_the_plain_loop(reading, make_clip, make_call, scenario, definition):
    clip = make_clip()

    answer, counted = ask(reading, query_of(clip, scenario, TopK(2, definition)), make_call())

    scores = expected_scores(clip, scenario, 2)
    assert answer.nats == count_nats(scores, num_pixels=5 * 8 * 8)
    assert answer.top_k == top_k_cross_entropy(scores, 2, definition, 6)
    assert counted == pytest.approx(answer.nats.bits_total / 20)
    assert answer.deadline_met


def test_frames_of_a_target_are_tokenised(reading, make_clip, make_call):
    clip, seen = make_clip(), make_clip(1, num_frames=5)
    ids = ToyLikelihoodEngine().tokenize(seen.frames)
    query = replace(query_of(clip), target_ids=None, target_frames=seen.frames)

    answer, _ = ask(reading, query, make_call())

    assert answer.nats == count_nats(expected_scores(replace(clip, ids=ids)), num_pixels=5 * 8 * 8)
    assert answer.top_k is None


def test_a_stored_context_gives_the_same_numbers_and_is_not_read_again(reading, make_clip, make_call):
    clip = make_clip()

    async def scenario():
        async with run_service(reading) as (service, running):
            encoder = ContextEncoder(service.contract, running.core.worker, running.reader)
            stored = await encoder.encode(StoredObservation(clip.frames, clip.states), make_call())
            fresh = await service.score(query_of(clip), make_call())
            running.engine.calls.clear()
            again = await service.score(replace(query_of(clip), observation=stored), make_call())
            return fresh, again, running.engine.calls["read"]

    fresh, again, num_reads = asyncio.run(scenario())
    assert again.nats == fresh.nats
    assert num_reads == 5


def test_many_at_once_and_in_any_order_give_the_same_numbers(reading, make_clip, make_call):
    clips = [make_clip(seed, num_frames=1 + seed, num_grids=1 + seed % 3) for seed in range(6)]

    async def scenario(order):
        async with run_service(reading) as (service, _):
            return await asyncio.gather(*(service.score(query_of(clips[place]), make_call()) for place in order))

    for order in (range(6), [5, 2, 0, 4, 1, 3]):
        for place, answer in zip(order, asyncio.run(scenario(order)), strict=True):
            clip = clips[place]
            assert answer.nats == count_nats(expected_scores(clip), num_pixels=len(clip.ids) * 64)


def test_probabilities_of_every_future_sum_to_one(reading, make_clip, make_call):
    contract = toy_contract(tokens=toy_tokens(levels=(2,), grid=(1, 2)))
    clip = make_clip(num_grids=2)

    async def scenario():
        async with run_service(reading, ToyLikelihoodEngine(contract)) as (service, _):
            futures = [[[a, b], [c, d]] for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
            queries = [query_of(replace(clip, ids=np.array(ids))) for ids in futures]
            return [(await service.score(query, make_call())).nats.nats_total for query in queries]

    assert sum(np.exp(-nats) for nats in asyncio.run(scenario())) == pytest.approx(1, abs=1e-5)


class TestSurprise:
    def test_bits_are_placed_among_those_of_held_out_episodes(self, reading, make_clip, make_call):
        answer, _ = ask(reading, query_of(make_clip()), make_call(), CALIBRATION)

        bits = answer.nats.bits_per_grid
        assert answer.surprises == tuple(CALIBRATION.surprise(each) for each in bits)
        assert len({surprise.z for surprise in answer.surprises}) == 5

    def test_another_scenario_than_the_calibration_s_has_none(self, reading, make_clip, make_call):
        answer, _ = ask(reading, query_of(make_clip(), Scenario.AUTOREGRESSIVE), make_call(), CALIBRATION)

        assert answer.surprises is None

    def test_a_model_without_a_calibration_has_none(self, reading, make_clip, make_call):
        assert ask(reading, query_of(make_clip()), make_call())[0].surprises is None


class TestRefusals:
    def test_a_deadline_in_the_middle_is_refused_and_counted(self, reading, make_clip, make_call, fake_clock):
        def advance(rows):
            fake_clock.now += 1.0

        async def scenario():
            engine = ToyLikelihoodEngine(read_hook=advance)
            async with run_service(reading, engine, clock=fake_clock) as (service, running):
                with pytest.raises(DeadlineExceeded):
                    await service.score(query_of(make_clip()), make_call(deadline_s=fake_clock.now + 3.5))
                assert running.engine.calls["read"] == 4
                await service.score(query_of(make_clip()), make_call(deadline_s=fake_clock.now + 9.0))
                late = await service.score(query_of(make_clip()), make_call(deadline_s=fake_clock.now + 7.5))
                assert not late.deadline_met
                outcomes = ("exceeded", "met", "late")
                return [running.core.count("foreframe_deadline_total", outcome=each) for each in outcomes]

        assert asyncio.run(scenario()) == [1, 1, 1]

    def test_a_client_that_left_is_not_counted_as_refused(self, reading, make_clip, make_call):
        async def is_disconnected():
            return True

        async def scenario():
            async with run_service(reading) as (service, running):
                with pytest.raises(ClientLeft):
                    await service.score(query_of(make_clip()), make_call(is_disconnected=is_disconnected))
                return running.core.count("foreframe_rejected_total", reason="client_left")

        assert asyncio.run(scenario()) == 0

    def test_overload_and_faults_are_counted(self, reading, make_clip, make_call, gate):
        class Hook:
            is_broken = False

            def __call__(self, rows):
                gate(rows)
                if self.is_broken:
                    raise FloatingPointError("planted")

        hook = Hook()

        async def scenario():
            engine = ToyLikelihoodEngine(read_hook=hook)
            async with run_service(reading, engine, max_pending_s=1e-9) as (service, running):
                gate.close()
                busy = asyncio.create_task(service.score(query_of(make_clip()), make_call()))
                assert await asyncio.to_thread(gate.is_entered.wait, 20)
                with pytest.raises(Overloaded):
                    await service.score(query_of(make_clip()), make_call())
                gate.open()
                await busy
                hook.is_broken = True
                with pytest.raises(ModelFault):
                    await service.score(query_of(make_clip()), make_call())
                hook.is_broken = False
                reasons = ("overloaded", "model_fault")
                return [running.core.count("foreframe_rejected_total", reason=each) for each in reasons]

        assert asyncio.run(scenario()) == [1, 1]
