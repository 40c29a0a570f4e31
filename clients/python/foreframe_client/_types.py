"""What the client takes and gives. Values only; axis letters: t context frames, f predicted frames, k members, h w, d.

Frames are uint8 RGB 0..255; states are float32 in physical units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64, UInt8

FrameSelection = Union[Literal["all", "last"], Sequence[int]]
"""Which future frames to decode: all, the last one, or indices 1..horizon."""
Reducer = Literal["mean", "median", "medoid", "none"]
Noise = Literal["antithetic", "iid"]
Strategy = Literal["sample", "posterior_mean"]
OnDeadline = Literal["degrade", "partial", "fail"]
Priority = Literal["controller", "bulk"]
Variance = Literal["none", "summary", "map"]
CachePolicy = Literal["use", "bypass", "refresh"]
Metadata = Mapping[str, Union[str, int, float, bool, None]]


@dataclass(frozen=True)
class Camera:
    """One camera of a model: its frames are uint8 RGB `t height width 3`."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Model:
    """What a model takes and gives. `document` is all that the server says about it."""

    id: str
    family: str
    revision: str
    cameras: Tuple[Camera, ...]
    context_frames: int
    horizon: int
    fps: float
    state_schema: str
    state_dim: int
    capabilities: Tuple[str, ...]
    document: Mapping[str, object]


@dataclass(frozen=True)
class StateSchema:
    """A state vector: names and units of its columns, in order."""

    name: str
    names: Tuple[str, ...]
    units: Tuple[str, ...]
    document: Mapping[str, object]

    @property
    def dim(self) -> int:
        """Width d of a state row."""
        return len(self.names)


@dataclass(frozen=True)
class Degraded:
    """How an answer is less than what was asked."""

    members: int
    steps: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something the server did or saw that the caller may not expect; `pointer` is a JSON pointer into the request."""

    code: str
    pointer: str
    message: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted frames and what they rest on.

    variance: how much one draw varies, estimated from the members, mean over RGB, in units where white is 1; None when
    not asked for or with fewer than two members. spread_per_frame: its root mean per frame, None likewise.
    members: None unless asked for or not reduced. times_s: seconds after the last context frame.
    """

    id: str
    model: str
    revision: str
    frames: UInt8[np.ndarray, "f h w 3"]
    frame_indices: Int64[np.ndarray, " f"]
    times_s: Float64[np.ndarray, " f"]
    variance: Optional[Float32[np.ndarray, "f h w"]]
    spread_per_frame: Optional[Float64[np.ndarray, " f"]]
    members: Optional[UInt8[np.ndarray, "k f h w 3"]]
    num_members: int
    requested_members: int
    steps: int
    strategy: str
    seed: int
    degraded: Optional[Degraded]
    deadline_met: bool
    cache: str
    determinism: str
    timings_ms: Mapping[str, float]
    warnings: Tuple[Notice, ...]
