"""How long a likelihood engine takes: candidates that share their history against ones that do not, and long histories.

Every comparison is made in one run, its sides taking turns, with what both sides answered compared beside it. It knows
engines and rows, no queue and no wire; time comes from the clock that is passed in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.reading import first_row, next_row, read_history
from foreframe_engines.types import GridScore, TokenContext, TokenHistory, TokenRow

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """What is seen, and the states of c grids seen and of k candidate futures.

    `max_rows` rows at most share a read, on both sides.
    """

    frames: UInt8[np.ndarray, "t y x 3"]
    states: Float32[np.ndarray, "c n"]
    candidates: Float32[np.ndarray, "k h n"]
    max_rows: int = 8


@dataclass(frozen=True, slots=True)
class SharingMeasures:
    """Wall time of scoring all candidates with one history against one history each.

    reads_ratio is what the numbers of grids read foretell. largest_cost_difference_nats: of any candidate's cost, with
    neighbours and a shared history against all alone.
    """

    history_grids: int
    future_grids: int
    candidates: int
    rows_a_read: int
    repeats: int
    shared_ms: float
    independent_ms: float
    wall_time_ratio: float
    wall_time_ratios: Sequence[float]
    reads_ratio: float
    largest_cost_difference_nats: float


@dataclass(frozen=True, slots=True)
class HistoryMeasures:
    """Time to score a new grid after 1, 2, ... grids, from kept keys and values and by reading everything again.

    largest_difference_nats: of any token's log-probability, kept against read again.
    """

    history_grids: Sequence[int]
    repeats: int
    kept_ms: Sequence[float]
    read_again_ms: Sequence[float]
    kept_last_over_first_ratio: float
    read_again_last_over_first_ratio: float
    largest_difference_nats: float


def measure_sharing(engine: LikelihoodEngine, plans: Plans, repeats: int, clock: Clock) -> SharingMeasures:
    """Score all candidates both ways, in turns, after one untimed turn each."""
    score_independent(engine, plans)
    difference = score_shared(engine, plans) - score_independent(engine, replace(plans, max_rows=1))
    turns = [
        (_timed(score_shared, engine, plans, clock), _timed(score_independent, engine, plans, clock))
        for _ in range(repeats)
    ]
    history, future, count = len(plans.states), plans.candidates.shape[1], len(plans.candidates)
    return SharingMeasures(
        history_grids=history,
        future_grids=future,
        candidates=count,
        rows_a_read=plans.max_rows,
        repeats=repeats,
        shared_ms=round(1000 * median(shared for shared, _ in turns), 2),
        independent_ms=round(1000 * median(independent for _, independent in turns), 2),
        wall_time_ratio=round(median(shared / independent for shared, independent in turns), 4),
        wall_time_ratios=[round(shared / independent, 4) for shared, independent in turns],
        reads_ratio=round((history - 1 + count * future) / (count * (history - 1 + future)), 4),
        largest_cost_difference_nats=float(np.abs(difference).max()),
    )


def _timed(
    score: Callable[[LikelihoodEngine, Plans], object], engine: LikelihoodEngine, plans: Plans, clock: Clock
) -> float:
    started = clock()
    score(engine, plans)
    return clock() - started


def score_shared(engine: LikelihoodEngine, plans: Plans) -> Float64[np.ndarray, " k"]:
    """Return each candidate's nats under greedy rollout; what is seen is tokenised and read once for all."""
    context = read_history(engine, engine.tokenize(plans.frames), plans.states)
    rows = [first_row(context, states[0]) for states in plans.candidates]
    return _roll_out(engine, rows, plans)


def score_independent(engine: LikelihoodEngine, plans: Plans) -> Float64[np.ndarray, " k"]:
    """Return the same with everything done for every candidate anew, as for as many requests at once."""
    seen = [engine.tokenize(plans.frames) for _ in plans.candidates]
    histories = [TokenHistory() for _ in seen]
    for place in range(len(plans.states) - 1):
        states = plans.states[place : place + 2]
        rows = [TokenRow(ids[place], states, history) for ids, history in zip(seen, histories, strict=True)]
        histories = [score.history for score in _read_all(engine, rows, plans.max_rows)]
    contexts = [TokenContext(history, ids[-1], plans.states[-1]) for ids, history in zip(seen, histories, strict=True)]
    rows = [first_row(context, states[0]) for context, states in zip(contexts, plans.candidates, strict=True)]
    return _roll_out(engine, rows, plans)


def _roll_out(engine: LikelihoodEngine, rows: Sequence[TokenRow], plans: Plans) -> Float64[np.ndarray, " k"]:
    scores = _read_all(engine, rows, plans.max_rows)
    costs = _costs(scores)
    for step in range(1, plans.candidates.shape[1]):
        nexts = zip(scores, plans.candidates[:, step - 1 : step + 1], strict=True)
        scores = _read_all(engine, [next_row(score, score.greedy, states) for score, states in nexts], plans.max_rows)
        costs += _costs(scores)
    return costs


def _costs(scores: Sequence[GridScore]) -> Float64[np.ndarray, " k"]:
    return -np.array([score.log_probability.sum(dtype=np.float64) for score in scores])


def _read_all(engine: LikelihoodEngine, rows: Sequence[TokenRow], max_rows: int) -> list[GridScore]:
    starts = range(0, len(rows), max_rows)
    return [score for start in starts for score in engine.read(rows[start : start + max_rows])]


def measure_history(
    engine: LikelihoodEngine,
    ids: Int64[np.ndarray, "g s"],
    states: Float32[np.ndarray, "g n"],
    repeats: int,
    clock: Clock,
) -> HistoryMeasures:
    """Time the score of grids 1, 2, ... g-1 of a clip, each after all grids before it.

    Lengths take turns, so that what else the machine does meets all of them. The first turn is not timed.
    """
    rows = list(_rows_by_length(engine, ids, states))
    differences = [_compare(engine, row, ids, states) for row in rows]
    kept: list[list[float]] = [[] for _ in rows]
    again: list[list[float]] = [[] for _ in rows]
    for _ in range(repeats):
        for row, kept_s, again_s in zip(rows, kept, again, strict=True):
            started = clock()
            engine.read([row])
            between = clock()
            _read_again(engine, row, ids, states)
            kept_s.append(between - started)
            again_s.append(clock() - between)
    kept_ms, again_ms = ([round(1000 * median(times), 3) for times in side] for side in (kept, again))
    return HistoryMeasures(
        history_grids=[row.history.num_grids + 1 for row in rows],
        repeats=repeats,
        kept_ms=kept_ms,
        read_again_ms=again_ms,
        kept_last_over_first_ratio=round(kept_ms[-1] / kept_ms[0], 3),
        read_again_last_over_first_ratio=round(again_ms[-1] / again_ms[0], 3),
        largest_difference_nats=max(differences),
    )


def _rows_by_length(
    engine: LikelihoodEngine, ids: Int64[np.ndarray, "g s"], states: Float32[np.ndarray, "g n"]
) -> Iterator[TokenRow]:
    history = TokenHistory()
    for place in range(len(ids) - 1):
        row = TokenRow(ids[place], states[place : place + 2], history, ids[place + 1])
        yield row
        (score,) = engine.read([row])
        history = score.history


def _read_again(
    engine: LikelihoodEngine, row: TokenRow, ids: Int64[np.ndarray, "g s"], states: Float32[np.ndarray, "g n"]
) -> GridScore:
    num_grids = row.history.num_grids + 1
    context = read_history(engine, ids[:num_grids], states[:num_grids])
    (score,) = engine.read([first_row(context, row.states[1], row.target)])
    return score


def _compare(
    engine: LikelihoodEngine, row: TokenRow, ids: Int64[np.ndarray, "g s"], states: Float32[np.ndarray, "g n"]
) -> float:
    (kept,) = engine.read([row])
    again = _read_again(engine, row, ids, states)
    return float(np.abs(kept.log_probability - again.log_probability).max())
