"""What sessions take and give. Values only; as `_types` has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

import numpy as np

from foreframe_client._short import Short
from foreframe_client._types import Notice, Prediction

if TYPE_CHECKING:
    from jaxtyping import Float32


@dataclass(frozen=True, eq=False, repr=False)
class StepPrediction(Prediction):
    """The frames of a session's step. `frame_indices` count from the step's first row, from 1.

    is_repeat: the server had made the step before, and these are the bytes it gave then.
    """

    step_id: int
    committed_step_id: int
    is_repeat: bool


@dataclass(frozen=True)
class Shadow:
    """How near a session's predictions have been to the frames that arrived: means in dB over `count` frames.

    baseline_db: of the frame that arrived before, taken as the prediction. None before the first.
    """

    count: int
    psnr_db: Optional[float]
    baseline_db: Optional[float]


@dataclass(frozen=True, eq=False, repr=False)
class SessionStatus(Short):
    """A session as the server holds it. rollback_from: from this step on, every one can be rolled back to.

    frames: seen and predicted since the start. state: the last row, as the model's schema has it. num_bytes: of the
    server's memory.
    """

    session_id: str
    model: str
    revision: str
    committed_step_id: int
    rollback_from: int
    frames: int
    state: Float32[np.ndarray, " d"]
    seed: int
    expires_in_s: float
    num_bytes: int
    shadow: Shadow
    warnings: Tuple[Notice, ...]


@dataclass(frozen=True)
class Compared:
    """One frame that arrived: PSNR in dB of its prediction, None where there was none, and of the frame before it."""

    psnr_db: Optional[float]
    baseline_db: float
