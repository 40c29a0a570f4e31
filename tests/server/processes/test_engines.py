"""What a toy does in this process, it does in another: the same tests on both."""

import gc

import numpy as np
import process_toys
import pytest

from foreframe_engines import (
    EngineError,
    EnsembleSpec,
    LikelihoodEngine,
    ModelFault,
    NoisePlan,
    Query,
    Reducer,
    RolloutEngine,
    Sampling,
    ShapeMismatch,
    Strategy,
    TokenHistory,
    TokenRow,
    sample,
)
from foreframe_engines.selftest import measure_determinism, point_at_zero, random_rows
from foreframe_server.opening import open_bundle
from foreframe_server.processes.team import EngineTeam
from foreframe_server.settings import EngineSettings


@pytest.fixture(scope="module")
def there():
    """Toys in another process."""
    team = EngineTeam(process_toys.open_toys, EngineSettings(), size=1, on_restart=pytest.fail)
    team.start()
    yield team.opened(0)
    team.close()


@pytest.fixture(params=["here", "there"])
def opened(request):
    """Toys in this process, and in another."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def here():
    return process_toys.open_toys(EngineSettings())


def make_query(seed, *, size=3, steps=4):
    rng = np.random.default_rng(seed)
    context = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    states = rng.standard_normal((12, 3), dtype=np.float32)
    return Query(
        "toy",
        context,
        states,
        (1, 4, 8),
        Sampling(Strategy.SAMPLE, steps, seed),
        EnsembleSpec(size, Reducer.MEAN, NoisePlan.ANTITHETIC),
    )


def make_token_row(seed, history=None, *, has_target=True, top_k=None):
    rng = np.random.default_rng(seed)
    ids, target = rng.integers(0, 6, (2, 4))
    states = rng.standard_normal((2, 3), dtype=np.float32)
    return TokenRow(ids, states, history or TokenHistory(), target if has_target else None, top_k)


def test_the_engines_keep_the_protocols(opened):
    assert isinstance(opened.rollout, RolloutEngine)
    assert isinstance(opened.likelihood, LikelihoodEngine)
    assert opened.determinism == "bitwise"
    assert opened.contract.model == "toy"
    assert opened.calibration.spread is not None
    assert opened.calibration.surprise is not None


@pytest.mark.parametrize("seed", range(3))
def test_predictions_have_the_same_bytes(opened, here, seed):
    query = make_query(seed)
    ours, theirs = sample(here.rollout, query), sample(opened.rollout, query)
    assert theirs.frames.tobytes() == ours.frames.tobytes()
    assert theirs.members.tobytes() == ours.members.tobytes()


def test_every_stage_returns_the_same_bytes_shapes_and_dtypes(opened, here, context):
    states = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal(here.rollout.noise_shape(), np.float32)
    answers = []
    for engine in (here.rollout, opened.rollout):
        latents = engine.encode(context)
        conditioning = engine.condition(latents, states)
        assert conditioning.context_latents is latents
        answers.append([latents, *conditioning.tables.values(), engine.initial_latents(conditioning, noise)])
    for one, other in zip(*answers, strict=True):
        assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def test_rows_of_several_conditionings_keep_to_their_own(opened, here):
    ours, theirs = random_rows(here.rollout, 5), random_rows(opened.rollout, 5)
    stepped = [engine.step(rows) for engine, rows in ((here.rollout, ours), (opened.rollout, theirs))]
    assert [state.tobytes() for state in stepped[0]] == [state.tobytes() for state in stepped[1]]
    clean = point_at_zero(opened.rollout, theirs, stepped[1])
    decoded = opened.rollout.decode(clean, (1, 8))
    assert decoded.tobytes() == here.rollout.decode(point_at_zero(here.rollout, ours, stepped[0]), (1, 8)).tobytes()


def test_equal_rows_give_equal_bytes_in_any_company(opened):
    assert measure_determinism(opened.rollout) == "bitwise"


def test_reads_follow_each_other_with_the_same_bytes(opened, here):
    histories = [None, None]
    for seed in range(4):
        scores = []
        for place, engine in enumerate((here.likelihood, opened.likelihood)):
            rows = [
                make_token_row(seed, histories[place], top_k=2),
                make_token_row(seed + 9, has_target=False, top_k=2),
            ]
            read = engine.read(rows)
            histories[place] = read[0].history
            scores.append(read)
        for one, other in zip(*scores, strict=True):
            for name in ("log_probability", "greedy", "top_log_mass", "is_in_top"):
                assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert histories[1].num_grids == 4


def test_a_history_shares_what_was_before_it(opened):
    first = opened.likelihood.read([make_token_row(0)])[0].history
    second, fork = (
        score.history for score in opened.likelihood.read([make_token_row(1, first), make_token_row(2, first)])
    )
    assert second.keys[0] is fork.keys[0] is first.keys[0]
    assert second.keys[1] is not fork.keys[1]


def test_frames_become_ids_and_ids_frames(opened, here, context):
    ids = opened.likelihood.tokenize(context)
    assert ids.tobytes() == here.likelihood.tokenize(context).tobytes()
    assert opened.likelihood.detokenize(ids).tobytes() == here.likelihood.detokenize(ids).tobytes()


def test_what_the_engine_raises_is_raised(opened, make_row, context):
    with pytest.raises(ModelFault, match="as asked"):
        opened.rollout.step([make_row(opened.rollout, process_toys.FAULT)])
    bad = np.full((12, 3, 4, 4), np.nan, np.float32)
    with pytest.raises(ModelFault, match="not finite"):
        opened.rollout.decode([bad], (1,))


def test_a_part_of_a_window_is_refused(make_team):
    engine = make_team(process_toys.open_wide_windows).opened(0).likelihood
    with pytest.raises(ShapeMismatch):
        engine.tokenize(np.zeros((4, 8, 8, 3), np.uint8))


def test_a_surprise_in_the_process_is_a_model_fault_and_the_process_lives(make_team, make_row, restarted):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    for mark, words in ((process_toys.SURPRISE, "ValueError: a surprise"), (process_toys.OBJECTS, "object")):
        with pytest.raises(ModelFault, match=words):
            engine.step([make_row(engine, mark)])
    assert len(engine.step([make_row(engine)])) == 1
    assert restarted.reasons == []


def test_an_argument_that_is_no_numbers_never_leaves(make_team, make_row):
    engine = make_team(process_toys.open_rollout).opened(0).rollout
    with pytest.raises(EngineError, match="object"):
        engine.encode(np.array([object()]))
    assert len(engine.step([make_row(engine)])) == 1


def test_a_conditioning_crosses_once_and_is_forgotten_when_it_is_gone(make_team, here):
    team = make_team(process_toys.open_rollout)
    engine, keeper = team.opened(0).rollout, team._keepers[0]
    rows = random_rows(engine, 4)
    assert keeper.num_known == 0
    for _ in range(3):
        engine.step(rows)
        assert keeper.num_known == 4  # of two conditionings the context and the one table
    del rows
    gc.collect()
    assert keeper.num_known == 0


@pytest.mark.parametrize("name", ["rollout", "likelihood"])
def test_a_model_may_have_one_engine_alone(make_team, name):
    opened = make_team(getattr(process_toys, f"open_{name}")).opened(0)
    assert (opened.rollout is None) == (name != "rollout")
    assert (opened.likelihood is None) == (name != "likelihood")


def test_the_built_in_model_predicts_the_same_bytes_in_a_process_of_its_own(make_team):
    settings = EngineSettings(num_threads=1)
    ours, theirs = open_bundle(settings), make_team(open_bundle).opened(0)
    assert (theirs.fingerprint, theirs.determinism) == (ours.fingerprint, ours.determinism)
    rows = [random_rows(engine, 3) for engine in (ours.rollout, theirs.rollout)]
    stepped = [engine.step(row) for engine, row in zip((ours.rollout, theirs.rollout), rows, strict=True)]
    assert [state.tobytes() for state in stepped[0]] == [state.tobytes() for state in stepped[1]]
    for engine in (ours.rollout, ours.likelihood):
        engine.close()
