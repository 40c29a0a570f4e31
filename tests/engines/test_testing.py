from collections.abc import Callable
from dataclasses import replace

import numpy as np

from foreframe_engines import Query, sample
from foreframe_engines.testing import ToyRolloutEngine, toy_contract

MakeQuery = Callable[..., Query]


def test_every_part_of_a_query_reaches_the_toys_frames(make_query: MakeQuery) -> None:
    query = make_query(size=2)
    variants = [
        query,
        replace(query, context=255 - query.context),
        replace(query, states=-query.states),
        replace(query, sampling=replace(query.sampling, seed=99)),
        replace(query, sampling=replace(query.sampling, steps=7)),
    ]
    assert len({sample(ToyRolloutEngine(), variant).frames.tobytes() for variant in variants}) == len(variants)


def test_each_future_row_of_the_states_moves_its_own_frame(make_query: MakeQuery) -> None:
    query = make_query()
    changed = query.states.copy()
    changed[4 + 2] += 1
    before, after = (sample(ToyRolloutEngine(), one).frames for one in (query, replace(query, states=changed)))
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [index == 2 for index in range(8)]


def test_missing_future_rows_repeat_the_last(make_query: MakeQuery) -> None:
    query = make_query(future_rows=3)
    repeated = replace(query, states=np.concatenate([query.states, np.repeat(query.states[-1:], 5, axis=0)]))
    frames = [sample(ToyRolloutEngine(), one).frames.tobytes() for one in (query, repeated)]
    assert frames[0] == frames[1]


def test_a_toy_of_another_contract_keeps_it() -> None:
    contract = toy_contract(size=16, context_frames=2, horizon=3, state_dim=5)
    engine = ToyRolloutEngine(contract)
    latents = engine.encode(np.zeros((2, 16, 16, 3), np.uint8))
    assert latents.shape == (2, *contract.latent_shape)
    assert latents.min() == latents.max() == -1
    conditioning = engine.condition(latents, np.zeros((5, 5), np.float32))
    start = engine.initial_latents(conditioning, np.zeros(engine.noise_shape(), np.float32))
    assert engine.decode([start, start], [1, 3]).shape == (2, 2, 16, 16, 3)


def test_the_toy_remembers_that_it_was_closed() -> None:
    engine = ToyRolloutEngine()
    assert not engine.is_closed
    engine.close()
    assert engine.is_closed
