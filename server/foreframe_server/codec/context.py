"""What a request's future starts from: an observation that came along, or one that was uploaded before.

Knows the contract and how to ask for what is stored, and nothing of stores, routes or engines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from foreframe_engines import Contract, StateSchema
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.layouts import find_changes, read_layout
from foreframe_server.codec.observation import read_context
from foreframe_server.codec.oddities import find_flat, find_outliers, find_unit_doubts
from foreframe_server.codec.states import read_states
from foreframe_server.errors import InvalidRequest, Reason, UnknownModel
from foreframe_server.observations import StoredObservation
from foreframe_server.schemas import Observation, Warned
from foreframe_server.state_layout import StateLayout

STATE_POINTER = "/observation/state"

Recall = Callable[[str], StoredObservation]
"""Finds an uploaded observation by its id. Raises Gone."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """An observation that fits; `is_stored` says that it was uploaded, and warned about, before."""

    observation: StoredObservation
    warnings: tuple[Warned, ...]
    is_stored: bool

    @property
    def layout(self) -> StateLayout:
        """How its states were written, and with them every state of the request that says nothing else."""
        return self.observation.layout

    def find_odd_states(
        self,
        future: Float32[np.ndarray, "n d"],
        pointer: str,
        schema: StateSchema,
        layout: StateLayout | None = None,
    ) -> tuple[Warned, ...]:
        """Warn of odd states among the rows that came with this request; `pointer` leads to the future's.

        layout: how the future's rows were written, where not as the observation's.
        """
        past = self.observation.states
        pointers = [f"{pointer}/{row}" for row in range(len(future))]
        layouts = [layout or self.layout] * len(future)
        if not self.is_stored:
            pointers = [f"{STATE_POINTER}/values/{row}" for row in range(len(past))] + pointers
            layouts = [self.layout] * len(past) + layouts
        states = np.concatenate([past, future])
        sent = states[-len(pointers) :]
        return (
            *find_outliers(sent, schema, pointers, layouts),
            *find_unit_doubts(sent, schema, pointer),
            *find_flat(states, pointer),
        )


@dataclass(frozen=True, slots=True)
class ObservationReader:
    """Reads a request's observation for a contract; `num_frames` says how many frames it may have."""

    contract: Contract
    bounds: Bounds
    num_frames: range

    def read(self, observation: Observation | None, observation_id: str | None, recall: Recall) -> Observed:
        """Return what exactly one of the two stands for.

        Raises InvalidRequest and its kin with a pointer, or Gone for an id that is not held any more.
        """
        if observation is not None and observation_id is not None:
            raise _refusal("/observation_id", "stands beside an observation", "one of the two")
        if observation is not None:
            return self.read_sent(observation)
        if observation_id is None:
            raise _refusal("/observation", "is missing", "observation or observation_id")
        return self._check_stored(recall(observation_id))

    def read_sent(self, observation: Observation) -> Observed:
        """Return an observation that came along. Raises InvalidRequest and its kin with a pointer."""
        schema = self.contract.state
        layout = read_layout(observation.state, STATE_POINTER, schema)
        context = read_context(
            observation, self.contract, self.num_frames, max_picture_pixels=self.bounds.max_picture_pixels
        )
        count = len(context.frames)
        num_rows = range(count, count + 1)
        states = read_states(observation.state.values, f"{STATE_POINTER}/values", schema, num_rows, layout)
        changes = find_changes(layout, STATE_POINTER, schema)
        stored = StoredObservation(context.frames, states, layout=layout)
        return Observed(stored, (*context.warnings, *changes), is_stored=False)

    def _check_stored(self, observation: StoredObservation) -> Observed:
        count = len(observation.frames)
        if count < self.num_frames.start:
            expected = f"at least {self.num_frames.start} frames"
            raise _refusal("/observation_id", "the observation has too few frames", expected, f"{count} frames")
        changes = find_changes(observation.layout, "/observation_id", self.contract.state)
        return Observed(observation, changes, is_stored=True)


def check_model(name: str | None, contract: Contract) -> None:
    """Refuse the name of another model. Raises UnknownModel."""
    if name not in (None, contract.model):
        raise UnknownModel("No model of this name is loaded.", reasons=[Reason("/model", "is not loaded")])


def _refusal(pointer: str, message: str, expected: str, received: str | None = None) -> InvalidRequest:
    return InvalidRequest("The observation cannot be used.", reasons=[Reason(pointer, message, expected, received)])
