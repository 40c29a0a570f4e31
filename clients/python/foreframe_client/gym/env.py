"""One episode after another in a served world model: a gymnasium environment on the server's sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Union

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from foreframe_client._client import Client
from foreframe_client._errors import ForeframeError, InvalidRequest
from foreframe_client._types import Prediction
from foreframe_client.gym.episode import Episode
from foreframe_client.gym.task import Start, Task
from foreframe_client.gym.world import Observed, find_world

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

_SEEDS = 2**31


class RemoteWorldEnv(gymnasium.Env[Observed, np.ndarray]):
    """A served world model as an environment: an action moves the robot by one frame, what it then sees is predicted.

    Observations are maps of `pixels`, uint8 RGB `h w 3`, and `state`, float32 `d`, the row that the action led to. An
    episode never terminates, because a model tells of no end; it is truncated at the task's horizon. Equal seeds and
    actions give equal episodes. `info` has the step, the seconds since the start, the codes of the server's warnings
    and, of an ensemble, the spread.

    server: an address, or a client, which the environment leaves open. Raises InvalidRequest where the task does not
    fit the model, and what the client raises.
    """

    metadata: Dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium declares it so

    def __init__(self, server: Union[str, Client], task: Task, render_mode: Optional[str] = None) -> None:
        self.task, self.render_mode = task, render_mode
        self._client = server if isinstance(server, Client) else Client(server)
        self._owns_client = self._client is not server
        self._episode: Optional[Episode] = None
        try:
            self.world = find_world(self._client, task)
        except ForeframeError:
            self.close()
            raise
        self.metadata = {**type(self).metadata, "render_fps": self.world.model.fps}
        self.action_space = self.world.actions.space
        self.observation_space = self.world.observations

    @property
    def prediction(self) -> Optional[Prediction]:
        """All that the server said of the last frame, None at a start."""
        return None if self._episode is None else self._episode.prediction

    def reset(
        self, *, seed: Optional[int] = None, options: Optional[Dict[str, Any]] = None
    ) -> Tuple[Observed, Dict[str, Any]]:
        """Begin an episode at a start that the generator draws, or at number `options["start"]`.

        Raises InvalidRequest for other options, and what the client raises.
        """
        super().reset(seed=seed)
        start = self._choose(options or {})
        self._end_episode()
        self._episode = Episode(self._client, self.world, self.task, start)
        return self._episode.observation, self._episode.info

    def step(self, action: Float32[np.ndarray, " a"]) -> Tuple[Observed, float, bool, bool, Dict[str, Any]]:
        """Move the robot by one frame; after an error it has not moved.

        Raises ResetNeeded before the first reset and after the horizon, InvalidRequest for an action that does not
        fit, NothingScored when the frame has no cost, and what the client raises.
        """
        episode = self._episode
        if episode is None or episode.is_over:
            raise ResetNeeded("an episode begins with a reset and ends at its horizon")
        episode.advance(action, int(self.np_random.integers(_SEEDS)))
        return episode.observation, episode.reward, False, episode.is_over, episode.info

    def render(self) -> Optional[UInt8[np.ndarray, "h w 3"]]:
        """Return the last frame where `render_mode` is `rgb_array`. Raises ResetNeeded before the first reset."""
        if self.render_mode is None:
            return None
        if self._episode is None:
            raise ResetNeeded("there is nothing to render before the first reset")
        return self._episode.observation["pixels"]

    def close(self) -> None:
        """End the episode, and close the client unless it was given."""
        self._end_episode()
        if self._owns_client:
            self._client.close()

    def _choose(self, options: Dict[str, Any]) -> Start:
        starts = self.world.starts
        unknown = ", ".join(sorted(set(options) - {"start"}))
        if unknown:
            raise InvalidRequest(f"the only option of a reset is start, not {unknown}")
        number = options.get("start")
        if number is None:
            number = int(self.np_random.integers(len(starts)))
        if number not in range(len(starts)):
            raise InvalidRequest(f"start must be 0 to {len(starts) - 1}")
        return starts[number]

    def _end_episode(self) -> None:
        if self._episode is not None:
            self._episode.end()
            self._episode = None
