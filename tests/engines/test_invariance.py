"""The same request, alone and inside any mix of others, gives the same bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import (
    GRAPHS,
    LIKELIHOOD_GRAPHS,
    Bundle,
    GraphLikelihoodEngine,
    GraphRolloutEngine,
    GridScore,
    LikelihoodEngine,
    MemoryShape,
    Prediction,
    Query,
    RolloutEngine,
    StepRow,
    Strategy,
    TokenHistory,
    TokenRow,
    first_row,
    get_schedule,
    num_steps,
    open_likelihood_engine,
    open_rollout_engine,
    read_history,
    sample,
    summarise,
)
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.sampling import initial_member, step_all
from foreframe_engines.testing import (
    LeakyToyEngine,
    LeakyToyLikelihoodEngine,
    ToyLikelihoodEngine,
    ToyRolloutEngine,
    toy_contract,
)

MakeQuery = Callable[..., Query]


def predict_together(engine: RolloutEngine, queries: Sequence[Query]) -> list[Prediction]:
    """Predict several queries with the members of all in every forward, in a shuffled order, each at its own time."""
    rng = np.random.default_rng(len(queries))
    shared = [engine.condition(engine.encode(query.context), query.states) for query in queries]
    times = [get_schedule(num_steps(query.sampling), engine.contract.sampler.shift) for query in queries]
    latents = [
        [initial_member(engine, conditioning, query, member) for member in range(query.ensemble.size)]
        for query, conditioning in zip(queries, shared, strict=True)
    ]
    for step in range(max(map(len, times)) - 1):
        places = [
            (job, member)
            for job, query in enumerate(queries)
            for member in range(query.ensemble.size)
            if step < len(times[job]) - 1
        ]
        rng.shuffle(places)
        rows = [StepRow(latents[job][member], *times[job][step : step + 2], shared[job]) for job, member in places]
        for (job, member), moved in zip(places, step_all(engine, rows), strict=True):
            latents[job][member] = moved
    return [
        summarise(engine.decode(members, query.frame_indices), query.frame_indices, query.sampling, query.ensemble)
        for query, members in zip(queries, latents, strict=True)
    ]


def mixed_queries(make_query: MakeQuery) -> list[Query]:
    return [
        make_query(1, size=1, steps=3),
        make_query(2, size=5, steps=2, frame_indices=(8,)),
        make_query(3, size=12, steps=4, future_rows=2),
        make_query(4, strategy=Strategy.POSTERIOR_MEAN),
    ]


def is_invariant(engine: RolloutEngine, queries: Sequence[Query]) -> bool:
    alone = [sample(engine, query) for query in queries]
    together = predict_together(engine, queries)
    return all(
        one.members.tobytes() == other.members.tobytes() and one.frames.tobytes() == other.frames.tobytes()
        for one, other in zip(alone, together, strict=True)
    )


@pytest.fixture(params=[1, 2, 4])
def ort_engine(request: pytest.FixtureRequest, golden_bundle: Path) -> Iterator[GraphRolloutEngine]:
    engine = open_rollout_engine(Bundle.open(golden_bundle), num_threads=request.param)
    yield engine
    engine.close()


def test_the_toys_rows_never_touch(make_query: MakeQuery) -> None:
    assert is_invariant(ToyRolloutEngine(), mixed_queries(make_query))


def test_a_toy_that_leaks_is_caught(make_query: MakeQuery) -> None:
    assert not is_invariant(LeakyToyEngine(), mixed_queries(make_query))


def test_onnx_runtime_gives_equal_bytes_alone_and_in_a_mix(
    ort_engine: GraphRolloutEngine, make_query: MakeQuery
) -> None:
    assert ort_engine.determinism == "bitwise"
    assert is_invariant(ort_engine, mixed_queries(make_query))


def test_latents_are_equal_to_the_last_bit_for_every_batch_size(
    ort_engine: GraphRolloutEngine, make_query: MakeQuery
) -> None:
    query = make_query(5, size=16)
    conditioning = ort_engine.condition(ort_engine.encode(query.context), query.states)
    rows = [
        StepRow(initial_member(ort_engine, conditioning, query, member), 0.9, 0.4, conditioning) for member in range(16)
    ]
    alone = [ort_engine.step([row])[0].tobytes() for row in rows]
    for size in (2, 3, 5, 8, 16):
        groups = [rows[start : start + size] for start in range(0, 16, size)]
        assert [latents.tobytes() for group in groups for latents in ort_engine.step(group)] == alone, size


def test_a_graph_that_leaks_is_caught_where_rows_share_a_forward(leaky_bundle: Path, make_query: MakeQuery) -> None:
    contract = Bundle.open(leaky_bundle).contract
    sessions = {name: OrtSession(Bundle.open(leaky_bundle).graph_path(name), num_threads=1) for name in GRAPHS}
    engine = GraphRolloutEngine(contract, sessions)
    assert not is_invariant(engine, mixed_queries(make_query))
    engine.close()


def test_even_a_graph_that_leaks_gives_equal_bytes_on_the_cpu(leaky_bundle: Path, make_query: MakeQuery) -> None:
    engine = open_rollout_engine(Bundle.open(leaky_bundle), num_threads=2)
    assert is_invariant(engine, mixed_queries(make_query))
    engine.close()


def test_a_frames_bytes_do_not_depend_on_which_others_are_asked_for(
    ort_engine: GraphRolloutEngine, make_query: MakeQuery
) -> None:
    query = make_query(6, size=3)
    every = sample(ort_engine, query)
    last = sample(ort_engine, replace(query, frame_indices=(8,)))
    np.testing.assert_array_equal(last.members, every.members[:, 7:])


def test_an_ensemble_of_five_is_a_prefix_of_one_of_twenty(
    ort_engine: GraphRolloutEngine, make_query: MakeQuery
) -> None:
    five, twenty = (sample(ort_engine, make_query(7, size=size)) for size in (5, 20))
    np.testing.assert_array_equal(five.members, twenty.members[:5])
    assert all(len(set(pair)) == 2 for pair in pairwise(member.tobytes() for member in twenty.members))


def test_the_mix_is_a_real_one(make_query: MakeQuery) -> None:
    engine = ToyRolloutEngine(toy_contract(buckets=(1, 2, 4, 8, 16)))
    predict_together(engine, mixed_queries(make_query))
    assert max(engine.step_rows) == 16


def mixed_rows(engine: LikelihoodEngine) -> list[TokenRow]:
    """Histories of 0 to 3 grids, forks of one history, rows with and without a target, and two sizes of the top."""
    rng = np.random.default_rng(8)
    tokens = engine.tokens
    ids = rng.integers(0, tokens.vocabulary, (4, tokens.tokens))
    states = rng.standard_normal((4, 3), dtype=np.float32)
    rows = []
    for num_grids, target, top_k in [(1, None, None), (4, ids[0], 2), (3, ids[1], None), (2, None, 3), (4, ids[2], 3)]:
        context = read_history(engine, ids[:num_grids], states[:num_grids])
        rows += [first_row(context, state, target, top_k) for state in rng.standard_normal((3, 3), dtype=np.float32)]
    return rows


def score_bytes(score: GridScore) -> list[bytes]:
    arrays = [score.log_probability, score.greedy, score.top_log_mass, score.is_in_top]
    arrays += [score.history.keys[-1], score.history.values[-1]]
    return [array.tobytes() for array in arrays if array is not None]


def merged(row: TokenRow) -> TokenRow:
    """Hold the same history in one piece instead of one a grid."""
    if not row.history.keys:
        return row
    keys, values = (np.concatenate(arrays, axis=2) for arrays in (row.history.keys, row.history.values))
    return replace(row, history=TokenHistory((keys,), (values,)))


def is_reading_invariant(engine: LikelihoodEngine) -> bool:
    rows = mixed_rows(engine)
    alone = [score_bytes(engine.read([row])[0]) for row in rows]
    for seed, size in enumerate((1, 2, 5, 15)):
        order = np.random.default_rng(seed).permutation(len(rows))
        for places in np.split(order, range(size, len(rows), size)):
            together = engine.read([rows[place] for place in places])
            if [score_bytes(score) for score in together] != [alone[place] for place in places]:
                return False
    return True


@pytest.fixture(params=[1, 2, 4])
def ort_reader(request: pytest.FixtureRequest, golden_likelihood_bundle: Path) -> Iterator[GraphLikelihoodEngine]:
    engine = open_likelihood_engine(Bundle.open(golden_likelihood_bundle), num_threads=request.param)
    yield engine
    engine.close()


def test_the_likelihood_toys_rows_never_touch() -> None:
    assert is_reading_invariant(ToyLikelihoodEngine())


def test_a_likelihood_toy_that_leaks_is_caught() -> None:
    assert not is_reading_invariant(LeakyToyLikelihoodEngine())


def test_onnx_runtime_reads_equal_bytes_in_any_batch_and_order(ort_reader: GraphLikelihoodEngine) -> None:
    assert ort_reader.determinism == "bitwise"
    assert is_reading_invariant(ort_reader)


def test_a_history_reads_the_same_in_pieces_shared_or_built_anew(ort_reader: GraphLikelihoodEngine) -> None:
    rows, again = mixed_rows(ort_reader), mixed_rows(ort_reader)
    pieces, anew, whole = (
        [score_bytes(score) for score in ort_reader.read(some)] for some in (rows, again, [merged(row) for row in rows])
    )
    assert pieces == anew == whole


def test_a_frame_step_that_leaks_is_caught_where_rows_share_a_forward(leaky_likelihood_bundle: Path) -> None:
    bundle = Bundle.open(leaky_likelihood_bundle)
    sessions = {name: OrtSession(bundle.graph_path(name), num_threads=1) for name in LIKELIHOOD_GRAPHS}
    engine = GraphLikelihoodEngine(bundle.contract, sessions, MemoryShape(layers=2, width=5))
    assert not is_reading_invariant(engine)
    engine.close()


def test_even_a_frame_step_that_leaks_reads_equal_bytes_on_the_cpu(leaky_likelihood_bundle: Path) -> None:
    engine = open_likelihood_engine(Bundle.open(leaky_likelihood_bundle), num_threads=2)
    assert is_reading_invariant(engine)
    engine.close()
