"""Nats and bits of scored grids, and cross-entropy over the top k under named definitions. Pure arithmetic.

The paper reports a top-500 cross-entropy (arXiv 2510.07092), but the challenge's scorer is not public: what it does
with ids outside the 500 is unknown, so every number goes with the name of its definition.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from foreframe_engines.types import GridScores


class TopKDefinition(StrEnum):
    """What happens to targets outside the k likeliest ids of their place, whose probability together is the mass.

    topk_renormalised: they are left out; of the others, the mean of -log(p / mass).
    full_with_escape: the mean of -log p inside and -log((1 - mass) / (vocabulary - k)) outside, a proper code.
    full_vocabulary: the mean of -log p over all, whatever k.
    """

    TOPK_RENORMALISED = "topk_renormalised"
    FULL_WITH_ESCAPE = "full_with_escape"
    FULL_VOCABULARY = "full_vocabulary"


@dataclass(frozen=True, slots=True)
class Nats:
    """What the scored ids cost. `bits_per_pixel` counts the pixels of the frames that the grids stand for."""

    num_tokens: int
    nats_total: float
    bits_total: float
    nats_per_token: float
    bits_per_grid: tuple[float, ...]
    bits_per_pixel: float


@dataclass(frozen=True, slots=True)
class TopKCrossEntropy:
    """A cross-entropy in nats a token, and what lies outside the top k.

    value: None where the definition leaves every target out. num_outside: how many targets lie outside.
    escape_nats: -log(1 - mass) of the targets outside, summed and divided by the number of all targets: the part of
    `full_with_escape` that is spent on saying that the id is another one. 0 when none lies outside.
    escape_mass: mean over all targets of 1 - mass.
    """

    k: int
    definition: TopKDefinition
    value: float | None
    num_outside: int
    escape_nats: float
    escape_mass: float


def bits_map(scores: GridScores) -> Float64[np.ndarray, "g s"]:
    """Return what each id costs in bits; as rows and columns of the grid it is the surprise map."""
    return -scores.log_probability.astype(np.float64) / math.log(2)


def count_nats(scores: GridScores, *, num_pixels: int) -> Nats:
    """Sum up what the scored ids cost; `num_pixels` is frames times height times width."""
    bits_per_grid = bits_map(scores).sum(axis=1)
    bits_total = float(bits_per_grid.sum())
    nats_total = float(-scores.log_probability.sum(dtype=np.float64))
    num_tokens = scores.log_probability.size
    return Nats(
        num_tokens=num_tokens,
        nats_total=nats_total,
        bits_total=bits_total,
        nats_per_token=nats_total / num_tokens,
        bits_per_grid=tuple(bits_per_grid.tolist()),
        bits_per_pixel=bits_total / num_pixels,
    )


def top_k_cross_entropy(scores: GridScores, k: int, definition: TopKDefinition, vocabulary: int) -> TopKCrossEntropy:
    """Average over all tokens of scores that were read with `top_k=k`; 1 <= k <= vocabulary. Raises ValueError else."""
    if scores.top_log_mass is None or scores.is_in_top is None:
        raise ValueError("the scores were read without top_k")
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k is {k}, not 1 to {vocabulary}")
    log_probability, is_inside = scores.log_probability.astype(np.float64), scores.is_in_top
    log_mass = np.minimum(scores.top_log_mass.astype(np.float64), 0)
    outside = _escape_nats(log_probability[~is_inside], log_mass[~is_inside])
    match definition:
        case TopKDefinition.TOPK_RENORMALISED:
            costs = log_mass[is_inside] - log_probability[is_inside]
        case TopKDefinition.FULL_WITH_ESCAPE:
            costs = np.concatenate([-log_probability[is_inside], outside + math.log(max(vocabulary - k, 1))])
        case TopKDefinition.FULL_VOCABULARY:
            costs = -log_probability.ravel()
    return TopKCrossEntropy(
        k=k,
        definition=definition,
        value=float(costs.mean()) if costs.size else None,
        num_outside=outside.size,
        escape_nats=float(outside.sum() / log_mass.size),
        escape_mass=float(-np.expm1(log_mass).mean()),
    )


def _escape_nats(
    log_probability: Float64[np.ndarray, " o"], log_mass: Float64[np.ndarray, " o"]
) -> Float64[np.ndarray, " o"]:
    """Return -log(1 - mass) for targets outside.

    What lies outside holds at least the target itself, also where a float32 mass is rounded up to 1.
    """
    return -np.log(np.maximum(-np.expm1(log_mass), np.exp(log_probability)))
