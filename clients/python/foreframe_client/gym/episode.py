"""One episode: a session on the server, what was seen last, and what a frame is worth. Draws nothing, begins once."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, Optional

import numpy as np

from foreframe_client._client import Client
from foreframe_client._errors import ForeframeError, InvalidRequest, TransportError
from foreframe_client._types import Prediction
from foreframe_client.gym.task import Start, Task
from foreframe_client.gym.world import Observed, World
from foreframe_client.planning import NothingScored

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


class Episode:
    """What happens from a start on. `step` counts frames, `reward` is of the last, `prediction` what was said of it."""

    def __init__(self, client: Client, world: World, task: Task, start: Start) -> None:
        self._client, self._world, self._task = client, world, task
        context = world.model.context_frames
        self._frames: Deque[UInt8[np.ndarray, "h w 3"]] = deque(start.frames, context)
        self._rows: Deque[Float32[np.ndarray, " d"]] = deque(start.states, context)
        self._session = client.open_session(start.frames, start.states, model=world.model.id, camera=world.camera.name)
        self.step = 0
        self.reward = 0.0
        self.prediction: Optional[Prediction] = None
        self._may_be_ahead = False

    @property
    def is_over(self) -> bool:
        """Whether the horizon is reached."""
        return self.step >= self._world.horizon

    @property
    def observation(self) -> Observed:
        """A copy of the last frame and row."""
        return {"pixels": self._frames[-1].copy(), "state": self._rows[-1].copy()}

    @property
    def info(self) -> Dict[str, Any]:
        """What else there is to say of the last frame; equal seeds and actions give it again."""
        told: Dict[str, Any] = {"step": self.step, "time_s": self.step / self._world.model.fps}
        if self.prediction is not None:
            told["warnings"] = tuple(notice.code for notice in self.prediction.warnings)
            if self.prediction.spread_per_frame is not None:
                told["spread"] = float(self.prediction.spread_per_frame[-1])
        return told

    def advance(self, action: Float32[np.ndarray, " a"], seed: int) -> None:
        """Move the robot by one frame; after an error it has not moved.

        Raises InvalidRequest for an action that does not fit, NothingScored, and what the client raises.
        """
        row, task = self._row(action), self._task
        reward = self._reward(row, seed) if task.objectives else 0.0
        self.prediction = self._predict(row, seed)
        self._frames.append(self.prediction.frames[-1])
        self._rows.append(row)
        self.reward = reward
        self.step += 1

    def end(self) -> None:
        """Let the server drop the session; one that cannot be reached expires there by itself."""
        with contextlib.suppress(ForeframeError):
            self._session.close()

    def _predict(self, row: Float32[np.ndarray, " d"], seed: int) -> Prediction:
        if self._may_be_ahead:
            self._session.rollback(self.step)
            self._may_be_ahead = False
        task = self._task
        try:
            return self._session.step(
                row[None],
                strategy=task.strategy,
                steps=task.steps,
                ensemble=task.ensemble,
                seed=seed,
                variance="summary",
            )
        except TransportError:
            self._may_be_ahead = True  # the server may have made the step of which no answer came
            raise

    def _row(self, action: Float32[np.ndarray, " a"]) -> Float32[np.ndarray, " d"]:
        space, dim = self._world.actions.space, self._world.model.state_dim
        if np.shape(action) != space.shape:
            raise InvalidRequest(f"an action must have shape {space.shape}, not {np.shape(action)}")
        row = np.asarray(self._world.actions.decode(np.asarray(action, np.float32), self._rows[-1]), np.float32)
        if row.shape != (dim,):
            raise InvalidRequest(f"an action must lead to a row of {dim} numbers, not to shape {row.shape}")
        return row.copy()

    def _reward(self, row: Float32[np.ndarray, " d"], seed: int) -> float:
        """Let the server say what the frame will cost: it is the one that the session will predict."""
        task = self._task
        scores = self._client.score(
            np.stack(self._frames),
            np.stack(self._rows),
            row[None, None],
            objectives=task.objectives,
            model=self._world.model.id,
            camera=self._world.camera.name,
            strategy=task.strategy,
            steps=task.steps,
            ensemble=task.ensemble,
            seed=seed,
        )
        (scored,) = scores.candidates
        if scored.cost is None:
            raise NothingScored(f"the frame was not scored: {scored.reason or scored.status}")
        return -scored.cost
