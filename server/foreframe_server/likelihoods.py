"""What is asked of a likelihood and what comes back. Values only."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from foreframe_engines.nats import Nats, TopKCrossEntropy, TopKDefinition
from foreframe_engines.surprise import Surprise
from foreframe_engines.types import GridScores
from foreframe_server.calls import ReadTimings
from foreframe_server.observations import StoredObservation


class Scenario(StrEnum):
    """What each grid is scored given: the true grids before it, or the likeliest that the model gave itself."""

    TEACHER_FORCED = "teacher_forced"
    AUTOREGRESSIVE = "autoregressive"


@dataclass(frozen=True, slots=True)
class TopK:
    """Which cross-entropy over the k likeliest ids is wanted."""

    k: int
    definition: TopKDefinition


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodQuery:
    """What is asked, checked and complete. The target is whole windows: its ids, or the frames to be tokenised.

    target_frames: uint8 RGB 0..255. target_states: float32, physical units, one row a target frame.
    """

    observation: StoredObservation
    target_states: Float32[np.ndarray, "t n"]
    target_ids: Int64[np.ndarray, "g s"] | None
    target_frames: UInt8[np.ndarray, "t h w 3"] | None
    scenario: Scenario
    top_k: TopK | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodAnswer:
    """What the target costs, a grid at a time. `surprises` is None where no calibration applies."""

    scores: GridScores
    nats: Nats
    top_k: TopKCrossEntropy | None
    surprises: tuple[Surprise, ...] | None
    deadline_met: bool
    timings: ReadTimings
