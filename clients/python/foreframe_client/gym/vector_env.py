"""Many episodes side by side in a served world model, stepped at once so that the server can batch them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from foreframe_client._client import Client
from foreframe_client._errors import InvalidRequest
from foreframe_client.gym.env import RemoteWorldEnv
from foreframe_client.gym.task import Task
from foreframe_client.gym.world import Observed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, UInt8

    _Stepped = Tuple[Observed, Float64[np.ndarray, " n"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"], "Info"]

Info = Dict[str, Any]
_Moved = Tuple[Observed, float, bool, bool, Info]
_T = TypeVar("_T")

_MAX_THREADS = 64


class RemoteWorldVectorEnv(VectorEnv[Observed, np.ndarray, np.ndarray]):
    """`num_envs` environments that ask the server at the same time; each does what a `RemoteWorldEnv` does.

    An episode that was truncated begins anew with the next step, which ignores its action and rewards it with 0
    (autoreset mode NEXT_STEP). Arguments and errors are those of `RemoteWorldEnv`; after an error in one of them all
    must be reset.
    """

    metadata: Info = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, server: Union[str, Client], task: Task, num_envs: int = 1, render_mode: Optional[str] = None
    ) -> None:
        if num_envs < 1:
            raise InvalidRequest("num_envs must be at least 1")
        self._client = server if isinstance(server, Client) else Client(server)
        self._owns_client = self._client is not server
        self._pool = ThreadPoolExecutor(min(num_envs, _MAX_THREADS), "foreframe-env")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.envs: List[RemoteWorldEnv] = []
        try:
            self.envs += self._at_once(lambda _: RemoteWorldEnv(self._client, task, render_mode))
        except BaseException:
            self.close()
            raise
        first = self.envs[0]
        self.metadata = {**first.metadata, **type(self).metadata}
        self.single_action_space, self.single_observation_space = first.action_space, first.observation_space
        self.action_space = batch_space(first.action_space, num_envs)
        self.observation_space = batch_space(first.observation_space, num_envs)
        self._begins = np.ones(num_envs, bool)
        self._is_reset = False

    def reset(
        self, *, seed: Union[int, Sequence[Optional[int]], None] = None, options: Optional[Info] = None
    ) -> Tuple[Observed, Info]:
        """Begin all episodes; a whole number seeds environment i with `seed + i`, a sequence each with its own.

        Raises InvalidRequest for a sequence of another length, and what `RemoteWorldEnv.reset` raises.
        """
        seeds = self._seeds(seed)
        self._is_reset = False
        begun = self._at_once(lambda index: self.envs[index].reset(seed=seeds[index], options=options))
        self._begins[:], self._is_reset = False, True
        return _stack([observed for observed, _ in begun]), self._gather([info for _, info in begun])

    def step(self, actions: Float32[np.ndarray, "n a"]) -> _Stepped:
        """Move every robot by one frame, and begin the episodes anew that the step before truncated.

        Raises ResetNeeded before the first reset and after an error, and what `RemoteWorldEnv.step` raises.
        """
        if not self._is_reset:
            raise ResetNeeded("all environments must be reset before the first step, and after an error")
        if np.shape(actions) != self.action_space.shape:
            raise InvalidRequest(f"actions must have shape {self.action_space.shape}, not {np.shape(actions)}")
        self._is_reset = False
        moved = self._at_once(lambda index: self._move(index, actions[index]))
        self._is_reset = True
        observed, rewards, terminated, truncated, infos = zip(*moved)
        self._begins = np.array(truncated)
        ended = (np.array(terminated), np.array(truncated))
        return (_stack(observed), np.array(rewards, np.float64), *ended, self._gather(infos))

    def render(self) -> Optional[Tuple[UInt8[np.ndarray, "h w 3"], ...]]:
        """Return every environment's last frame where `render_mode` is `rgb_array`."""
        frames = [env.render() for env in self.envs]
        return None if self.render_mode is None else tuple(frame for frame in frames if frame is not None)

    def close_extras(self, **_: Any) -> None:  # noqa: ANN401 - what gymnasium passes on
        """End the episodes, and close the client unless it was given."""
        for env in self.envs:
            env.close()
        self._pool.shutdown()
        if self._owns_client:
            self._client.close()

    def _move(self, index: int, action: Float32[np.ndarray, " a"]) -> _Moved:
        if self._begins[index]:
            observed, info = self.envs[index].reset()
            return observed, 0.0, False, False, info
        return self.envs[index].step(action)

    def _at_once(self, do: Callable[[int], _T]) -> List[_T]:
        """Do it for every environment and wait for all, even when one fails."""
        futures = [self._pool.submit(do, index) for index in range(self.num_envs)]
        wait(futures)
        return [future.result() for future in futures]

    def _seeds(self, seed: Union[int, Sequence[Optional[int]], None]) -> List[Optional[int]]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise InvalidRequest(f"{self.num_envs} environments need as many seeds, not {len(seed)}")
        return list(seed)

    def _gather(self, infos: Sequence[Info]) -> Info:
        gathered: Info = {}
        for index, info in enumerate(infos):
            gathered = self._add_info(gathered, info, index)
        return gathered


def _stack(observed: Sequence[Observed]) -> Observed:
    return {name: np.stack([each[name] for each in observed]) for name in observed[0]}
