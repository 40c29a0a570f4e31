"""Solvers of a rectified flow as numbers: what a step makes of the state it keeps. Knows no network and no batch.

Time runs from 1 (noise) to 0 (data): x_t = (1 - t) x0 + t eps. What a network says counts as clean latents x - t v.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Float32

_MAX_SIGMA = 1.0 - 1e-6
"""The noise level that stands for time 1, where the logarithm of the signal's share has no value."""


class Solver(StrEnum):
    """How a member moves from one time to the next.

    euler: along the velocity. unipc: UniPC of order 2, B(h) = e^h - 1 (Zhao et al., arXiv 2302.04867), the one of Wan.
    """

    EULER = "euler"
    UNIPC = "unipc"


_NUM_SLOTS = {Solver.EULER: 1, Solver.UNIPC: 4}


def num_slots(solver: Solver) -> int:
    """Count the tensors of a member's state: the latents, for UniPC then the last corrected ones and two answers."""
    return _NUM_SLOTS[solver]


def initial_state(
    context_latents: Float32[np.ndarray, "t c y x"], noise: Float32[np.ndarray, "f c y x"], solver: Solver
) -> Float32[np.ndarray, "..."]:
    """Put a member's noise behind its clean context: latents `n c y x`, or `s n c y x` for a solver of more slots."""
    latents = np.concatenate([context_latents, noise])
    return latents if num_slots(solver) == 1 else np.stack([latents] * num_slots(solver))


def coefficients(times: Sequence[float], index: int) -> Float32[np.ndarray, "2 5"]:
    """Return the weights of UniPC's step `index` along `times`, which fall from 1.0 to 0.0.

    With the state (x, last, m1, m2) and the network's clean latents m at x: corrected = row 0 . (x, last, m1, m2, m),
    next = row 1 . (corrected, m, m1, 0, 0), and the new state is (next, corrected, m, m1). What a step has no use for
    has weight 0. Raises ValueError when there is no such step.
    """
    if not 0 <= index < len(times) - 1:
        raise ValueError(f"step {index} of a schedule of {len(times)} times does not exist")
    return np.array([_corrector(times, index), _predictor(times, index)], np.float32)


def _corrector(times: Sequence[float], index: int) -> tuple[float, ...]:
    """Weigh (x, last, m1, m2, m): the step that led here, taken again knowing where it led."""
    if index == 0:
        return 1.0, 0.0, 0.0, 0.0, 0.0
    before, now = _sigma(times[index - 1]), _sigma(times[index])
    stretch, reach = now / before, _reach(before, now)
    if _order(times, index - 1) == 1:
        return 0.0, stretch, reach / 2, 0.0, reach / 2
    span = _log_snr(now) - _log_snr(before)
    ratio = (_log_snr(_sigma(times[index - 2])) - _log_snr(before)) / span
    old, new = _corrector_weights(ratio, -span)
    return 0.0, stretch, reach * (1 - old / ratio - new), reach * old / ratio, reach * new


def _predictor(times: Sequence[float], index: int) -> tuple[float, ...]:
    """Weigh (corrected, m, m1, 0, 0)."""
    now, after = _sigma(times[index]), _sigma(times[index + 1])
    stretch, reach = after / now, _reach(now, after)
    if _order(times, index) == 1:
        return stretch, reach, 0.0, 0.0, 0.0
    span = _log_snr(after) - _log_snr(now)
    ratio = (_log_snr(_sigma(times[index - 1])) - _log_snr(now)) / span
    return stretch, reach * (1 - 0.5 / ratio), reach * 0.5 / ratio, 0.0, 0.0


def _corrector_weights(ratio: float, h: float) -> tuple[float, float]:
    """Solve for the weights of the older difference and the newest one, so that two orders of the error vanish."""
    growth = math.expm1(h)
    first = (growth / h - 1) / growth
    second = 2 * ((growth / h - 1) / h - 0.5) / growth
    old = (second - first) / (ratio - 1)
    return old, first - old


def _order(times: Sequence[float], index: int) -> int:
    """Take order 1 where there is no earlier answer yet, and in the last step, which only lands."""
    return 1 if index == 0 or index == len(times) - 2 else 2


def _reach(sigma: float, next_sigma: float) -> float:
    """Return how far a step moves towards the clean latents: (1 - s') (1 - e^-h), which is 1 - s' where s' is 0."""
    stretch = (1 - sigma) * next_sigma / (sigma * (1 - next_sigma))
    return (1 - next_sigma) * (1 - stretch)


def _sigma(time: float) -> float:
    """Round a noise level as single precision does, because at 1 - 1e-6 the signal's share is mostly rounding."""
    return float(np.float32(min(time, _MAX_SIGMA)))


def _log_snr(sigma: float) -> float:
    return math.log1p(-sigma) - math.log(sigma)
