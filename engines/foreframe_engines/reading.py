"""Reading grids one after another, each read asked for by a generator that is sent its score.

Run plainly here, and by a server's queue with its deadlines: both read the same rows, so both give the same numbers.
Reading a grid takes its states and those of the next one, so what futures share is every grid but the last.
"""

from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64

from foreframe_engines.engine import LikelihoodEngine
from foreframe_engines.types import GridScore, GridScores, TokenContext, TokenHistory, TokenRow, TokenSpec
from foreframe_engines.windows import grid_lengths

T = TypeVar("T")
Reads = Generator[TokenRow, GridScore, T]
"""Asks for one read after another and returns what they add up to."""


def grid_states(states: Float32[np.ndarray, "t n"], tokens: TokenSpec) -> Float32[np.ndarray, "g n"]:
    """Average the states of the frames that each grid stands for. Raises ShapeMismatch for a part of a window."""
    lengths = grid_lengths(len(states), tokens)
    sums = np.add.reduceat(states, np.cumsum(lengths) - lengths, axis=0, dtype=np.float64)
    return (sums / lengths[:, None]).astype(np.float32)


def read_history(
    engine: LikelihoodEngine, ids: Int64[np.ndarray, "g s"], states: Float32[np.ndarray, "g n"]
) -> TokenContext:
    """Read every grid but the last, at least one grid being there."""
    return _run(engine, history_reads(ids, states))


def history_reads(ids: Int64[np.ndarray, "g s"], states: Float32[np.ndarray, "g n"]) -> Reads[TokenContext]:
    """Ask for what `read_history` reads."""
    history = TokenHistory()
    for place in range(len(ids) - 1):
        history = (yield TokenRow(ids[place], states[place : place + 2], history)).history
    return TokenContext(history, ids[-1].copy(), states[-1].copy())


def first_row(
    context: TokenContext,
    next_states: Float32[np.ndarray, " n"],
    target: Int64[np.ndarray, " s"] | None = None,
    top_k: int | None = None,
) -> TokenRow:
    """Make the row that reads a context's last grid before a future that begins with `next_states`."""
    states = np.stack([context.last_states, next_states])
    return TokenRow(context.last_ids, states, context.history, target, top_k)


def next_row(
    score: GridScore,
    ids: Int64[np.ndarray, " s"],
    states: Float32[np.ndarray, "2 n"],
    target: Int64[np.ndarray, " s"] | None = None,
    top_k: int | None = None,
) -> TokenRow:
    """Make the row that reads the grid just scored as `ids`, with its states and the next grid's."""
    return TokenRow(ids, states, score.history, target, top_k)


def teacher_forced(
    engine: LikelihoodEngine,
    context: TokenContext,
    target_ids: Int64[np.ndarray, "g s"],
    target_states: Float32[np.ndarray, "g n"],
    top_k: int | None = None,
) -> GridScores:
    """Score each target grid given all true grids before it."""
    return _run(engine, teacher_forced_reads(context, target_ids, target_states, top_k))


def teacher_forced_reads(
    context: TokenContext,
    target_ids: Int64[np.ndarray, "g s"],
    target_states: Float32[np.ndarray, "g n"],
    top_k: int | None = None,
) -> Reads[GridScores]:
    """Ask for what `teacher_forced` reads."""
    scores = [(yield first_row(context, target_states[0], target_ids[0], top_k))]
    for place in range(1, len(target_ids)):
        states = target_states[place - 1 : place + 1]
        scores.append((yield next_row(scores[-1], target_ids[place - 1], states, target_ids[place], top_k)))
    return gather(scores)


def greedy_rollout(
    engine: LikelihoodEngine,
    context: TokenContext,
    states: Float32[np.ndarray, "g n"],
    target_ids: Int64[np.ndarray, "g s"] | None = None,
    top_k: int | None = None,
) -> GridScores:
    """Feed back the likeliest ids; score them, or the target ids where given, under each step's distribution."""
    return _run(engine, greedy_reads(context, states, target_ids, top_k))


def greedy_reads(
    context: TokenContext,
    states: Float32[np.ndarray, "g n"],
    target_ids: Int64[np.ndarray, "g s"] | None = None,
    top_k: int | None = None,
) -> Reads[GridScores]:
    """Ask for what `greedy_rollout` reads."""
    targets = [None] * len(states) if target_ids is None else list(target_ids)
    scores = [(yield first_row(context, states[0], targets[0], top_k))]
    for place in range(1, len(states)):
        last = scores[-1]
        scores.append((yield next_row(last, last.greedy, states[place - 1 : place + 1], targets[place], top_k)))
    return gather(scores)


def gather(scores: Sequence[GridScore]) -> GridScores:
    """Put the scores of grids in a row together; their histories are left behind."""
    masses = [score.top_log_mass for score in scores if score.top_log_mass is not None]
    members = [score.is_in_top for score in scores if score.is_in_top is not None]
    return GridScores(
        np.stack([score.log_probability for score in scores]),
        np.stack([score.greedy for score in scores]),
        np.stack(masses) if len(masses) == len(scores) else None,
        np.stack(members) if len(members) == len(scores) else None,
    )


def _run(engine: LikelihoodEngine, reads: Reads[T]) -> T:
    try:
        row = next(reads)
        while True:
            (score,) = engine.read([row])
            row = reads.send(score)
    except StopIteration as done:
        answer: T = done.value
        return answer
