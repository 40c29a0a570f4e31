"""Oracles answer with hashes of all that was asked, and knobs do what they say."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from foreframe_engines import ModelFault
from foreframe_engines.engine import LikelihoodEngine, RolloutEngine
from foreframe_engines.sampling import sample
from foreframe_engines.selftest import measure_determinism, random_rows
from foreframe_engines.testing_oracle import (
    CHANNELS,
    EXIT_STATUS,
    Knob,
    MixedUpOracle,
    OracleEngine,
    OracleLikelihood,
    Pace,
    keystream,
    oracle_contract,
    seal,
)
from foreframe_engines.types import Conditioning, EnsembleSpec, Query, Sampling, Strategy, TokenHistory, TokenRow


@pytest.fixture
def engine():
    return OracleEngine()


@pytest.fixture
def ask():
    def build(seed=0, *, knob=Knob.NONE, amount=0.0, steps=3, size=2, frames=(1, 4)):
        rng = np.random.default_rng(seed)
        states = rng.standard_normal((6, len(CHANNELS)), dtype=np.float32)
        states[-1, 2:] = knob, amount
        return Query(
            "oracle",
            rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
            states,
            frames,
            Sampling(Strategy.SAMPLE, steps, seed),
            EnsembleSpec(size),
        )

    return build


def test_they_are_engines(engine):
    assert isinstance(engine, RolloutEngine)
    assert isinstance(OracleLikelihood(), LikelihoodEngine)


def test_equal_questions_have_equal_answers_in_any_company(engine, ask):
    assert sample(engine, ask()).members.tobytes() == sample(OracleEngine(), ask()).members.tobytes()
    assert measure_determinism(engine) == "bitwise"


def test_a_mixed_up_oracle_is_found_out(engine, ask):
    """The planted fault."""
    assert measure_determinism(MixedUpOracle()) != "bitwise"
    assert sample(MixedUpOracle(), ask()).members.tobytes() != sample(engine, ask()).members.tobytes()


def test_everything_in_a_row_shows_in_its_answer(engine):
    (row,) = random_rows(engine, 1)
    held = row.conditioning
    other = Conditioning(held.context_latents, {**held.tables, "seal": held.tables["seal"] + np.float32(1)})
    changes = [
        {},
        {"latents": row.latents + np.float32(1)},
        {"time": row.time - 0.1},
        {"next_time": row.next_time - 0.1},
        {"earlier_times": (1.0,)},
        {"guidance": 2.0},
        {"conditioning": other},
        {"conditioning": Conditioning(held.context_latents + np.float32(1), held.tables)},
    ]
    futures = {latents[2:].tobytes() for latents in engine.step([replace(row, **change) for change in changes])}
    assert len(futures) == len(changes)


def test_every_field_of_a_question_shows_in_its_frames(engine, ask):
    base = ask()
    brighter, later = base.context.copy(), base.states.copy()
    brighter[0, 0, 0, 0] ^= 1
    later[0, 0] += 1
    asked = [base, replace(base, context=brighter), replace(base, states=later), ask(steps=4)]
    asked.append(replace(base, sampling=replace(base.sampling, seed=1)))
    assert len({sample(engine, query).frames.tobytes() for query in asked}) == len(asked)


def test_a_frame_is_the_same_whatever_else_is_decoded(engine, ask):
    assert np.array_equal(sample(engine, ask()).members[:, 1], sample(engine, ask(frames=(4,))).members[:, 0])


def test_seals_tell_parts_apart():
    pairs = [("ab", "c"), ("a", "bc"), ("abc",), (b"a", "bc"), (1, "bc"), (True, "bc"), (1.0, "bc")]
    arrays = [(np.zeros((2, 3), np.uint8),), (np.zeros((3, 2), np.uint8),), (np.zeros(6, np.int8),), (bytes(6),)]
    seals = [seal(*parts) for parts in pairs + arrays]
    assert len(set(seals)) == len(seals)


def test_keystreams_are_bytes_of_any_shape():
    assert keystream(b"x", (2, 3)).shape == (2, 3)
    assert keystream(b"x", (6,)).tobytes() == keystream(b"x", (2, 3)).tobytes()


def test_pace_and_sleep_are_slept(ask):
    naps = []
    paced = OracleEngine(pace=Pace(2.0, 3.0), sleep=naps.append)
    sample(paced, ask(knob=Knob.SLEEP, amount=40.0, steps=1))
    assert naps == pytest.approx([0.008, 0.04, 0.04])


def test_nan_and_allocation_are_errors_of_the_question(engine, ask):
    with pytest.raises(ModelFault, match="finite"):
        sample(engine, ask(knob=Knob.NAN))
    with pytest.raises(MemoryError):
        sample(engine, ask(knob=Knob.ALLOCATE, amount=1e9))


def test_a_calm_oracle_answers_what_harms_others(ask):
    calm = OracleEngine(is_calm=True)
    for knob in Knob:
        assert sample(calm, ask(knob=knob)).frames.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(("knob", "status"), [(Knob.ABORT, -6), (Knob.VANISH, EXIT_STATUS)])
def test_what_kills_kills(knob, status):
    code = f"""
import resource
import numpy as np
from foreframe_engines.selftest import random_rows
from foreframe_engines.testing_oracle import OracleEngine
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
engine = OracleEngine()
states = np.zeros((6, 4), np.float32)
states[-1, 2] = {int(knob)}
held = engine.condition(engine.encode(np.zeros((2, 8, 8, 3), np.uint8)), states)
engine.step(random_rows(engine, 1, [held]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == status


def test_knobs_are_unlikely_in_random_states(engine):
    assert all(engine._knob(row) is Knob.NONE for row in random_rows(engine, 17))


def test_everything_in_a_token_row_shows_in_its_score():
    engine = OracleLikelihood()
    ids = engine.tokenize(np.zeros((1, 8, 8, 3), np.uint8))[0]
    row = TokenRow(ids, np.zeros((2, 4), np.float32), TokenHistory())
    (score,) = engine.read([row])
    rows = [
        row,
        replace(row, ids=(ids + 1) % 6),
        replace(row, states=np.ones((2, 4), np.float32)),
        replace(row, history=score.history),
        replace(row, target=ids),
        replace(row, top_k=2),
    ]
    scores = engine.read(rows)
    assert len({score.log_probability.tobytes() for score in scores}) == len(rows)
    assert all((score.log_probability < 0).all() and (score.greedy < 6).all() for score in scores)
    assert [score.history.num_grids for score in scores] == [1, 1, 1, 2, 1, 1]
    assert (scores[-1].is_in_top is not None, scores[0].is_in_top) == (True, None)


def test_ids_become_frames_of_the_camera():
    engine = OracleLikelihood()
    frames = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (0, 1)])
    one, other = pairwise(engine.tokenize(frames)).__next__()
    assert not np.array_equal(one, other)
    assert engine.detokenize(engine.tokenize(frames)).shape == frames.shape


def test_the_contract_names_its_channels():
    assert oracle_contract().state.names == CHANNELS
    assert oracle_contract().state.dim == len(CHANNELS)
