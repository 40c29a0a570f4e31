"""Counter-based noise: a member's draw is a function of the seed and the member's number alone.

It knows no batch, no neighbour and no order, so an ensemble of 5 is an exact prefix of one of 20.
"""

import numpy as np
from jaxtyping import Float32

from foreframe_engines.types import NoisePlan


def member_noise(seed: int, member: int, shape: tuple[int, ...], plan: NoisePlan) -> Float32[np.ndarray, "..."]:
    """Draw one member's standard normal noise.

    Antithetic members 2i and 2i+1 share one draw, the odd one negated. seed and member: 0..2**64-1.
    """
    if plan is NoisePlan.IID:
        return _draw(seed, member, shape)
    noise = _draw(seed, member // 2, shape)
    return -noise if member % 2 else noise


def _draw(seed: int, index: int, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
