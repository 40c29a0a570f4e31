"""A task on a server's model: which model and camera, its spaces, and whether the starts fit it. Holds no episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple, cast

import numpy as np
from gymnasium.spaces import Box, Space
from gymnasium.spaces import Dict as DictSpace

from foreframe_client._client import Client
from foreframe_client._errors import InvalidRequest
from foreframe_client._types import Camera, Model, StateSchema
from foreframe_client._wire import pictures, state_rows
from foreframe_client.gym.actions import Actions
from foreframe_client.gym.task import Start, Task

Observed = Dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class World:
    """What does not change between episodes. starts: exactly the model's context."""

    model: Model
    camera: Camera
    actions: Actions
    starts: Tuple[Start, ...]
    horizon: int

    @property
    def observations(self) -> Space[Observed]:
        """The space of what an agent sees: any picture, any finite row."""
        size, most = (self.camera.height, self.camera.width, 3), np.finfo(np.float32).max
        pixels = Box(0, 255, size, np.uint8)
        rows = Box(-most, most, (self.model.state_dim,), np.float32)
        return cast("Space[Observed]", DictSpace({"pixels": pixels, "state": rows}))  # gymnasium types it as of spaces


def find_world(client: Client, task: Task) -> World:
    """Ask the server for what a task needs. Raises InvalidRequest where they do not fit, and what the client raises."""
    model = _model_of(client, task)
    camera = _camera_of(model, task)
    schema = _schema_of(client, model)
    starts = tuple(_checked(start, model, camera) for start in task.starts)
    return World(model, camera, task.actions(schema), starts, task.horizon or model.horizon)


def _model_of(client: Client, task: Task) -> Model:
    if task.model is not None:
        return client.model(task.model)
    able = [model for model in client.models() if "predict" in model.capabilities]
    if len(able) != 1:
        names = ", ".join(model.id for model in able) or "none"
        raise InvalidRequest(f"model must be named: the server's models that predict are: {names}")
    return able[0]


def _camera_of(model: Model, task: Task) -> Camera:
    found = [camera for camera in model.cameras if task.camera in (None, camera.name)]
    if len(found) != 1:
        names = ", ".join(camera.name for camera in model.cameras) or "none"
        raise InvalidRequest(f"camera must be one of {model.id}'s: {names}")
    return found[0]


def _schema_of(client: Client, model: Model) -> StateSchema:
    found = [schema for schema in client.state_schemas() if schema.name == model.state_schema]
    if not found:
        raise InvalidRequest(f"the server does not tell the state schema {model.state_schema} of {model.id}")
    return found[0]


def _checked(start: Start, model: Model, camera: Camera) -> Start:
    """Return the last frames and rows of a start, as many as the model's context. Raises InvalidRequest, NonFinite."""
    frames, states = pictures("a start's frames", start.frames), state_rows("a start's states", start.states)
    size, needed = (camera.height, camera.width), model.context_frames
    if frames.shape[1:3] != size:
        raise InvalidRequest(
            f"a start's frames must be {size[0]} x {size[1]}, not {frames.shape[1]} x {frames.shape[2]}"
        )
    if len(frames) < needed or states.shape != (len(frames), model.state_dim):
        raise InvalidRequest(
            f"a start needs at least {needed} frames and a row of {model.state_dim} numbers for each, "
            f"not {len(frames)} frames and states {states.shape}"
        )
    return Start(frames[-needed:], states[-needed:])
