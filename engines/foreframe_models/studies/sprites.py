"""A world of tokens alone: sprites cross a grid at constant speed and wrap around. No pixels, no robot.

What a sprite does next follows from where it was in two earlier grids, at other positions than where it will be.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

SIDE = 8
NUM_SPRITES = 3
VOCABULARY = NUM_SPRITES + 1
"""Id 0 is the ground, 1.. are the sprites."""


@dataclass(frozen=True, slots=True, eq=False)
class SpriteClip:
    """Grids b t of ids, and which places a sprite is at."""

    ids: Int64[np.ndarray, "b t s"]
    is_sprite: Bool[np.ndarray, "b t s"]


def draw_sprites(rng: np.random.Generator, count: int, num_grids: int, speeds: tuple[int, ...]) -> SpriteClip:
    """Draw clips in which every sprite keeps one velocity; its faster component is one of `speeds`, cells a grid."""
    shape = (count, NUM_SPRITES)
    speed = rng.choice(speeds, shape)
    other = np.round(rng.uniform(-1.0, 1.0, shape) * speed).astype(np.int64)
    is_across = rng.random(shape) < 0.5
    signed = speed * rng.choice((-1, 1), shape)
    velocity = np.stack([np.where(is_across, other, signed), np.where(is_across, signed, other)], axis=-1)
    start = rng.integers(SIDE, size=(*shape, 2))
    times = np.arange(num_grids)[None, :, None, None]
    cells = (start[:, None] + times * velocity[:, None]) % SIDE
    places = cells[..., 0] * SIDE + cells[..., 1]
    ids = np.zeros((count, num_grids, SIDE * SIDE), np.int64)
    for sprite in range(NUM_SPRITES):  # a later sprite hides an earlier one
        np.put_along_axis(ids, places[..., sprite, None], sprite + 1, axis=-1)
    return SpriteClip(ids, ids > 0)
