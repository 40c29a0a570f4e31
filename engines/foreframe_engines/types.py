"""The words that engines, server and tools share: contract, query, conditioning, prediction. Values only.

Axis letters: b batch, k members, t frames, c h w, d state width. Frames are uint8 RGB 0..255 outside an
engine and float32 -1..1 inside; states are float32 in physical units outside and normalised inside.
Time of the rectified flow runs from 1 (noise) to 0 (data).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

Latents: TypeAlias = Float32[np.ndarray, "n c y x"]
"""One member on its way from noise to data: clean context latents, then the future's."""


class Strategy(StrEnum):
    """How a future is drawn. `posterior_mean` is one evaluation at t = 1, which returns E[x0 | context, states]."""

    SAMPLE = "sample"
    POSTERIOR_MEAN = "posterior_mean"


class Reducer(StrEnum):
    """What the members of an ensemble become."""

    MEAN = "mean"
    MEDIAN = "median"
    MEDOID = "medoid"
    NONE = "none"


class NoisePlan(StrEnum):
    """How members' noises relate: `antithetic` members come in pairs +eps, -eps."""

    ANTITHETIC = "antithetic"
    IID = "iid"


class OnDeadline(StrEnum):
    """What to do when time runs out: fewer members silently marked, the members at hand, or an error."""

    DEGRADE = "degrade"
    PARTIAL = "partial"
    FAIL = "fail"


class Priority(StrEnum):
    """Two classes of work: controllers wait for their answer, bulk work fills what is left."""

    CONTROLLER = "controller"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """One camera: frames are uint8 RGB `t height width 3`."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class StateSchema:
    """The state vector: names, units and training statistics, each of length d."""

    name: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    mean: Float32[np.ndarray, " d"]
    std: Float32[np.ndarray, " d"]
    low: Float32[np.ndarray, " d"]
    high: Float32[np.ndarray, " d"]

    @property
    def dim(self) -> int:
        """Width d of a state row."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """Defaults and limits of sampling; `shift` is the flow's timestep shift (Wan 2.2 uses 5)."""

    steps: int
    max_steps: int
    shift: float
    ensemble_size: int
    max_ensemble_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """What a model takes and gives. State row k belongs to frame k; future rows condition the frames they belong to."""

    model: str
    family: str
    revision: str
    description: str
    cameras: tuple[CameraSpec, ...]
    context_frames: int
    horizon: int
    fps: float
    state: StateSchema
    sampler: SamplerSpec
    latent_shape: tuple[int, int, int]
    """c h w of one latent frame."""
    frames_per_latent: int
    capabilities: tuple[str, ...]
    buckets: tuple[int, ...]
    """Batch sizes a step is run at; fewer rows are padded up to the next."""

    @property
    def camera(self) -> CameraSpec:
        """The camera whose future is predicted."""
        return self.cameras[0]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `steps` solver steps a member; `seed` 0..2**53-1."""

    strategy: Strategy
    steps: int
    seed: int
    guidance: float = 1.0


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """How many members and what becomes of them."""

    size: int = 1
    reducer: Reducer = Reducer.MEAN
    noise: NoisePlan = NoisePlan.ANTITHETIC


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What is asked, checked and complete: nothing past this point looks at shapes again.

    context: uint8 `t h w 3`, oldest first. states: float32 `t+H d`, physical units, context rows then future rows.
    frame_indices: 1..H of the frames wanted, ascending.
    """

    model: str
    context: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "n d"]
    frame_indices: tuple[int, ...]
    sampling: Sampling
    ensemble: EnsembleSpec = field(default_factory=EnsembleSpec)
    priority: Priority = Priority.CONTROLLER
    stream_id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What all members of a job share: clean context latents `t c h w` and the `condition` graph's named tables."""

    context_latents: Float32[np.ndarray, "t c h w"]
    tables: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """One member's next solver step: latents float32 `t c h w` (context included) go from `time` to `next_time`."""

    latents: Float32[np.ndarray, "t c h w"]
    time: float
    next_time: float
    conditioning: Conditioning


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What goes back: the reduced frames, every member, and how far the members spread.

    frames: uint8 RGB, the reducer's answer (of member 0 for `none`). variance: estimated from
    the members, mean over RGB, in units where white is 1. `spread_per_frame` is its root mean per frame.
    """

    frame_indices: tuple[int, ...]
    frames: UInt8[np.ndarray, "f h w 3"]
    members: UInt8[np.ndarray, "k f h w 3"]
    variance: Float32[np.ndarray, "f h w"]
    spread_per_frame: tuple[float, ...]
    sampling: Sampling
    ensemble: EnsembleSpec

    @property
    def num_members(self) -> int:
        """How many members the answer rests on; fewer than `ensemble.size` when it was cut short."""
        return len(self.members)
