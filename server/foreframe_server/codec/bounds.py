"""How much one body may hold. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one body may hold."""

    max_json_values: int
    max_picture_pixels: int
    max_candidates: int
