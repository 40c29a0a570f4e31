"""The stages of one prediction as things to call, timed in turns: what a bench of engines is made of."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Bundle, NoisePlan, RolloutEngine, StepRow, member_noise
from foreframe_engines.golden import example_clips
from foreframe_engines.selftest import point_at_zero
from foreframe_engines.types import Latents

_TIME, _NEXT_TIME = 1.0, 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one engine made of the same inputs: its steps' states, the last frame of where they point."""

    states: Sequence[Latents]
    frames: UInt8[np.ndarray, "k f h w 3"]


def step_of(members: int) -> str:
    """Name the stage of one step of so many members."""
    return f"step of {members}"


class Stages:
    """The stages of one prediction on one engine; inputs are the same for every engine of a bundle."""

    def __init__(self, engine: RolloutEngine, bundle: Bundle, members: int) -> None:
        self._engine = engine
        self._clip, contract = example_clips(bundle)[0], engine.contract
        self._context = self._clip.frames[: contract.context_frames]
        self._latents = engine.encode(self._context)
        conditioning = engine.condition(self._latents, self._clip.states)
        noises = [member_noise(0, member, engine.noise_shape(), NoisePlan.IID) for member in range(members)]
        starts = [engine.initial_latents(conditioning, noise) for noise in noises]
        self._rows = [StepRow(start, _TIME, _NEXT_TIME, conditioning) for start in starts]
        self._ends = point_at_zero(engine, self._rows[:1], engine.step(self._rows[:1]))

    def ways(self) -> dict[str, Callable[[], object]]:
        """Return every stage as something to call."""
        engine, horizon = self._engine, self._engine.contract.horizon
        return {
            "encode": partial(engine.encode, self._context),
            "condition": partial(engine.condition, self._latents, self._clip.states),
            step_of(1): partial(self._step, 1),
            step_of(len(self._rows)): partial(self._step, len(self._rows)),
            "decode the last frame": partial(engine.decode, self._ends, (horizon,)),
            "decode all frames": partial(engine.decode, self._ends, range(1, horizon + 1)),
        }

    def answers(self) -> Answers:
        """Run what is compared."""
        return Answers(self._step(len(self._rows)), self._engine.decode(self._ends, (self._engine.contract.horizon,)))

    def _step(self, members: int) -> list[Latents]:
        """Take a step, in as many forwards as it needs, and wait for what it gives."""
        largest = self._engine.contract.buckets[-1]
        groups = [self._rows[start : start + largest] for start in range(0, members, largest)]
        return [np.asarray(state) for group in groups for state in self._engine.step(group[:members])]


def time_in_turns(
    ways: Mapping[str, Mapping[str, Callable[[], object]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time every stage of every backend once a round, in ms, backends in turns; a first round does not count.

    The first backend has all stages.
    """
    taken: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in stages} for name, stages in ways.items()}
    for stage in next(iter(ways.values())):
        able = {name: stages[stage] for name, stages in ways.items() if stage in stages}
        for number in range(rounds + 1):
            for name, run in able.items():
                started = time.perf_counter()
                run()
                if number:
                    taken[name][stage].append((time.perf_counter() - started) * 1000)
    return taken
