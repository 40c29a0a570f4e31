from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import (
    ModelFault,
    NoisePlan,
    Query,
    Reducer,
    StepRow,
    Strategy,
    get_schedule,
    member_noise,
    sample,
)
from foreframe_engines.testing import ToyRolloutEngine, toy_contract

MakeQuery = Callable[..., Query]


def test_one_query_encodes_conditions_and_decodes_once(make_query: MakeQuery) -> None:
    engine = ToyRolloutEngine()
    sample(engine, make_query(size=20, steps=3))
    assert engine.calls == {"encode": 1, "condition": 1, "step": 6, "decode": 1}
    assert engine.step_rows == [16, 4] * 3


def test_members_follow_the_schedule_from_their_own_noise(make_query: MakeQuery) -> None:
    seen: list[Sequence[StepRow]] = []
    engine = ToyRolloutEngine(step_hook=seen.append)
    query = make_query(3, size=4, steps=5)
    sample(engine, query)
    assert [(rows[0].time, rows[0].next_time) for rows in seen] == list(pairwise(get_schedule(5, 5.0)))
    for member, row in enumerate(seen[0]):
        noise = member_noise(3, member, engine.noise_shape(), NoisePlan.ANTITHETIC)
        np.testing.assert_array_equal(row.latents[4:], noise)
        np.testing.assert_array_equal(row.latents[:4], row.conditioning.context_latents)


def test_the_posterior_mean_is_one_evaluation_whatever_steps_say(make_query: MakeQuery) -> None:
    engine = ToyRolloutEngine()
    sample(engine, make_query(steps=30, strategy=Strategy.POSTERIOR_MEAN))
    assert engine.step_rows == [1]


@pytest.mark.parametrize("reducer", Reducer)
def test_a_prediction_has_the_frames_and_members_asked_for(make_query: MakeQuery, reducer: Reducer) -> None:
    prediction = sample(ToyRolloutEngine(), make_query(size=3, reducer=reducer, frame_indices=(2, 5)))
    assert prediction.frame_indices == (2, 5)
    assert prediction.frames.shape == (2, 8, 8, 3)
    assert prediction.members.shape == (3, 2, 8, 8, 3)
    assert prediction.variance.shape == (2, 8, 8)
    assert len(prediction.spread_per_frame) == 2
    assert min(prediction.spread_per_frame) > 0


def test_latents_that_are_not_finite_never_become_a_prediction(make_query: MakeQuery) -> None:
    def poison(rows: Sequence[StepRow]) -> None:
        rows[-1].latents[-1] = np.nan

    with pytest.raises(ModelFault):
        sample(ToyRolloutEngine(step_hook=poison), make_query(size=2))


def test_a_larger_contract_works_the_same(make_query: MakeQuery) -> None:
    engine = ToyRolloutEngine(toy_contract(buckets=(1, 2)))
    sample(engine, make_query(size=5, steps=1))
    assert engine.step_rows == [2, 2, 1]
