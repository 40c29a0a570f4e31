"""What an episode in a served world model is: where it may begin, what an agent does, what counts. Knows no server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional, Sequence

import numpy as np

from foreframe_client._errors import InvalidRequest
from foreframe_client._types import Objective, StateSchema, Strategy
from foreframe_client.gym.actions import Actions, absolute

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


@dataclass(frozen=True, eq=False)
class Start:
    """What a robot saw before an episode begins, and how it stood: one row a frame, physical units, oldest first."""

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]


@dataclass(frozen=True, eq=False)
class Task:
    """What an episode is.

    starts: where it may begin; a reset draws one. actions: what an agent chooses, made for the model's state schema.
    objectives: what is rewarded, by minus the server's cost of each frame; without any, rewards are 0. horizon: frames
    after which an episode is truncated, by default the model's. strategy, steps, ensemble: how each frame is predicted,
    as for `Client.predict`. model, camera: may be left out when there is only one.
    """

    starts: Sequence[Start]
    actions: Callable[[StateSchema], Actions] = absolute
    objectives: Sequence[Objective] = ()
    horizon: Optional[int] = None
    strategy: Strategy = "sample"
    steps: Optional[int] = None
    ensemble: int = 1
    model: Optional[str] = None
    camera: Optional[str] = None

    def __post_init__(self) -> None:
        if not len(self.starts):
            raise InvalidRequest("an episode needs a start")
        if self.horizon is not None and self.horizon < 1:
            raise InvalidRequest("horizon must be at least 1")
