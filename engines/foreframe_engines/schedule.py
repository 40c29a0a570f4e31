"""The times of a rectified flow. Time runs from 1 (noise) down to 0 (data): x_t = (1 - t) x0 + t eps."""

from foreframe_engines.types import Sampling, Strategy


def get_schedule(steps: int, shift: float) -> tuple[float, ...]:
    """Return the steps + 1 times from 1.0 down to 0.0, evenly spaced before the shift s t / (1 + (s - 1) t).

    A shift above 1 spends more steps near the noise (Wan 2.2 uses 5; Esser et al., arXiv 2403.03206, eq. 23).
    """
    inner = (1 - index / steps for index in range(1, steps))
    return (1.0, *(shift * t / (1 + (shift - 1) * t) for t in inner), 0.0)


def num_steps(sampling: Sampling) -> int:
    """Count the solver steps of one member; the posterior mean is one evaluation at t = 1, schedule (1.0, 0.0)."""
    return 1 if sampling.strategy is Strategy.POSTERIOR_MEAN else sampling.steps
