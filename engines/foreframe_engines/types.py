"""The words that engines, server and tools share: contract, query, conditioning, prediction. Values only.

Axis letters: b batch, k members, t frames, c h w, d state width. Frames are uint8 RGB 0..255 outside an
engine and float32 -1..1 inside; states are float32 in physical units outside and normalised inside.
Time of the rectified flow runs from 1 (noise) to 0 (data).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from foreframe_engines.solvers import Solver

Latents: TypeAlias = Float32[np.ndarray, "n c y x"]
"""One member on its way from noise to data: clean context latents, then the future's."""

StepState: TypeAlias = Float32[np.ndarray, "*slots n c y x"]
"""What a solver keeps of a member between steps: its latents, or on an axis before them also what it looks back on."""


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
    """Defaults and limits of sampling; `shift` is the flow's timestep shift (Wan 2.2 uses 5).

    guidance: where a request says nothing; None where the model has none, 1 has no effect.
    """

    steps: int
    max_steps: int
    shift: float
    ensemble_size: int
    max_ensemble_size: int
    solver: Solver = Solver.EULER
    guidance: float | None = None


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """How frames become ids: windows of `window_frames` are tokenised by themselves, each into `window_grids` grids.

    An id is the sum of digit times base over `levels`, the first varying fastest. `grid` is rows, columns.
    `max_grids` bounds history and future together; `max_candidates` bounds one scoring.
    Cosmos DV8x8x8 has windows of 17 frames and 3 grids: frame 0, frames 1-8, frames 9-16.
    """

    levels: tuple[int, ...]
    grid: tuple[int, int]
    window_frames: int
    window_grids: int
    max_grids: int
    max_candidates: int

    @property
    def vocabulary(self) -> int:
        """How many ids v there are."""
        return math.prod(self.levels)

    @property
    def tokens(self) -> int:
        """How many ids s a grid has."""
        return math.prod(self.grid)

    @property
    def frames_per_grid(self) -> tuple[int, ...]:
        """How many frames each grid of a window stands for: of several, the first for one, the others alike."""
        if self.window_grids == 1:
            return (self.window_frames,)
        shared = self.window_grids - 1
        return (1, *[(self.window_frames - 1) // shared] * shared)


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
    """Above 1 the autoencoder is causal: the first latent is one frame, each later one so many."""
    capabilities: tuple[str, ...]
    buckets: tuple[int, ...]
    """Batch sizes a step is run at; fewer rows are padded up to the next."""
    tokens: TokenSpec | None = None
    """Set when the bundle has a likelihood model."""

    @property
    def camera(self) -> CameraSpec:
        """The camera whose future is predicted."""
        return self.cameras[0]

    @property
    def num_frames(self) -> int:
        """Frames of context and horizon together: as many as there are state rows."""
        return self.context_frames + self.horizon

    @property
    def context_latents(self) -> int:
        """Latent frames of the context."""
        return 1 + (self.context_frames - 1) // self.frames_per_latent

    @property
    def num_latents(self) -> int:
        """Latent frames n of context and horizon together."""
        return 1 + (self.num_frames - 1) // self.frames_per_latent


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `steps` solver steps a member; `seed` 0..2**53-1."""

    strategy: Strategy
    steps: int
    seed: int
    guidance: float = 1.0


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """How many members and what becomes of them.

    tolerance: stop sooner when the mean's standard error (root mean square over pixels, white is 1) is at most this.
    """

    size: int = 1
    reducer: Reducer = Reducer.MEAN
    noise: NoisePlan = NoisePlan.ANTITHETIC
    tolerance: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What is asked, checked and complete: nothing past this point looks at shapes again.

    context: uint8 `t h w 3`, oldest first. states: float32 `t+H d`, physical units, context rows then future rows.
    frame_indices: 1..H of the frames wanted, ascending. context_latents: the encoded context, where it is at hand.
    """

    model: str
    context: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "n d"]
    frame_indices: tuple[int, ...]
    sampling: Sampling
    ensemble: EnsembleSpec = field(default_factory=EnsembleSpec)
    priority: Priority = Priority.CONTROLLER
    stream_id: str | None = None
    context_latents: Latents | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What all members of a job share: clean context latents `t c h w` and the `condition` graph's named tables."""

    context_latents: Float32[np.ndarray, "t c h w"]
    tables: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """One member's next solver step: its state (latents float32, context included) goes from `time` to `next_time`.

    earlier_times: those of the member's steps before, 1 first. guidance: how far from the branch that is told nothing;
    1 is no guidance.
    """

    latents: StepState
    time: float
    next_time: float
    conditioning: Conditioning
    earlier_times: tuple[float, ...] = ()
    guidance: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What goes back: the reduced frames, every member, and how far the members spread.

    frames: uint8 RGB, the reducer's answer (of member 0 for `none`). variance: estimated from
    the members, mean over RGB, in units where white is 1. `spread_per_frame` is its root mean per frame.
    correlation: within antithetic pairs. effective_members: how many independent ones would have a mean as exact.
    standard_error: of the mean, root mean square over pixels, white is 1. None where too few members tell.
    """

    frame_indices: tuple[int, ...]
    frames: UInt8[np.ndarray, "f h w 3"]
    members: UInt8[np.ndarray, "k f h w 3"]
    variance: Float32[np.ndarray, "f h w"]
    spread_per_frame: tuple[float, ...]
    sampling: Sampling
    ensemble: EnsembleSpec
    correlation: float | None = None
    effective_members: float | None = None
    standard_error: float | None = None

    @property
    def num_members(self) -> int:
        """How many members the answer rests on; fewer than `ensemble.size` when it was cut short."""
        return len(self.members)


@dataclass(frozen=True, slots=True, eq=False)
class TokenHistory:
    """What a likelihood model remembers of the grids before: temporal keys and values, each `l 1 t s d`.

    Extending makes a new history that shares the old one's arrays, so forks cost nothing.
    """

    keys: tuple[Float32[np.ndarray, "l 1 t s d"], ...] = ()
    values: tuple[Float32[np.ndarray, "l 1 t s d"], ...] = ()

    @property
    def num_grids(self) -> int:
        """How many grids have been read."""
        return sum(keys.shape[2] for keys in self.keys)

    @property
    def num_bytes(self) -> int:
        """How much memory the arrays hold, shared ones included."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def extended(self, keys: Float32[np.ndarray, "l 1 t s d"], values: Float32[np.ndarray, "l 1 t s d"]) -> Self:
        """Return this history and what one more step added."""
        return replace(self, keys=(*self.keys, keys), values=(*self.values, values))


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One grid to read: its ids, the states of it and of the next grid, and the next grid's ids if they are scored.

    states: float32 `2 d`, physical units. top_k: also say how much probability the k likeliest ids of each place hold.
    """

    ids: Int64[np.ndarray, " s"]
    states: Float32[np.ndarray, "2 d"]
    history: TokenHistory
    target: Int64[np.ndarray, " s"] | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GridScore:
    """What a likelihood model says of the grid after a row's.

    log_probability: nats (at most 0) of each target id, or of each greedy id where no target was given.
    greedy: the likeliest id of each place, factor by factor. history: the row's, one grid longer.
    top_log_mass: log of the probability that the k likeliest ids hold; is_in_top: whether the scored id is one of them.
    """

    log_probability: Float32[np.ndarray, " s"]
    greedy: Int64[np.ndarray, " s"]
    history: TokenHistory
    top_log_mass: Float32[np.ndarray, " s"] | None = None
    is_in_top: Bool[np.ndarray, " s"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenContext:
    """What was seen, ready for any future: every grid but the last is read; the last waits for the states after it.

    last_states: float32 ` d`, physical units.
    """

    history: TokenHistory
    last_ids: Int64[np.ndarray, " s"]
    last_states: Float32[np.ndarray, " d"]

    @property
    def num_grids(self) -> int:
        """How many grids were seen, the last included."""
        return self.history.num_grids + 1

    @property
    def num_bytes(self) -> int:
        """How much memory the arrays hold."""
        return self.history.num_bytes + self.last_ids.nbytes + self.last_states.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class GridScores:
    """What a likelihood model says of several grids in a row; the fields are those of `GridScore`, one row a grid."""

    log_probability: Float32[np.ndarray, "g s"]
    greedy: Int64[np.ndarray, "g s"]
    top_log_mass: Float32[np.ndarray, "g s"] | None = None
    is_in_top: Bool[np.ndarray, "g s"] | None = None
