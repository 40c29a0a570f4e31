"""`foreframe bench engine`: what each part of a prediction takes on the backends that are here, in turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Bundle, EngineError, NoisePlan, RolloutEngine, StepRow, member_noise, open_rollout_engine
from foreframe_engines.golden import example_clips
from foreframe_engines.selftest import point_at_zero
from foreframe_engines.types import Latents
from foreframe_server.cli.facts import bundle_path
from foreframe_server.cli.faults import Fault, needs
from foreframe_server.settings import Settings

USUAL = ("onnxruntime", "torch", "torch-cuda", "torch-cuda-compiled")
"""The first that is here is what the others are compared with."""
BACKENDS = (*USUAL, "torch-compiled")
"""The last compiles for minutes on a CPU: it has to be asked for."""

_TIME, _NEXT_TIME = 1.0, 0.75


@dataclass(frozen=True, slots=True)
class EngineAsk:
    """What to measure: backends by name, none for the usual ones that are here, members of a large step, rounds."""

    backends: tuple[str, ...] = ()
    members: int = 8
    rounds: int = 5


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What one engine made of the same inputs: its steps' states, the last frame of where they point."""

    states: Sequence[Latents]
    frames: UInt8[np.ndarray, "k f h w 3"]


def run_engine(settings: Settings, ask: EngineAsk) -> dict[str, object]:
    """Time every stage of a prediction on every backend, in turns. Raises BundleError, or Fault when none is here."""
    bundle = Bundle.open(bundle_path(settings))
    with ExitStack() as stack:
        engines, missing = _open_all(bundle, ask.backends or USUAL, settings.engine.num_threads, stack)
        if not engines or (ask.backends and missing):
            raise Fault("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
        stages = {name: Stages(engine, bundle, ask.members) for name, engine in engines.items()}
        taken = time_in_turns({name: each.ways() for name, each in stages.items()}, ask.rounds)
        answers = {name: each.answers() for name, each in stages.items()}
    reference = next(iter(answers))
    return {
        "experiment": "bench engine",
        "model": bundle.contract.model,
        "revision": bundle.contract.revision,
        "num_threads": settings.engine.num_threads,
        "members": ask.members,
        "rounds": ask.rounds,
        "compared_with": reference,
        "backends": {
            name: {**_say_times(taken[name], taken[reference]), **_compare(answers[name], answers[reference])}
            for name in engines
        },
        "missing": missing,
    }


def _open_all(
    bundle: Bundle, names: Sequence[str], num_threads: int, stack: ExitStack
) -> tuple[dict[str, RolloutEngine], dict[str, str]]:
    engines: dict[str, RolloutEngine] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            engines[name] = stack.enter_context(closing(_open(bundle, name, num_threads)))
        except (EngineError, Fault) as error:
            missing[name] = str(error)
    return engines, missing


def _open(bundle: Bundle, name: str, num_threads: int) -> RolloutEngine:
    if name == "onnxruntime":
        return open_rollout_engine(bundle, num_threads=num_threads)
    with needs("torch", "pip install 'foreframe[models]'"):
        import torch

        from foreframe_engines.runtime.typed_graph import Precision
        from foreframe_models.torch_engine import TorchOptions, open_torch_engine

    torch.set_num_threads(num_threads)
    is_on_gpu = name.startswith("torch-cuda")
    options = TorchOptions(
        device="cuda" if is_on_gpu else "cpu",
        precision=Precision.BF16 if is_on_gpu else Precision.FP32,
        is_compiled=name.endswith("-compiled"),
    )
    return open_torch_engine(bundle.path, options)


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
            "step of 1": partial(self._step, 1),
            f"step of {len(self._rows)}": partial(self._step, len(self._rows)),
            "decode the last frame": partial(engine.decode, self._ends, (horizon,)),
            "decode all frames": partial(engine.decode, self._ends, range(1, horizon + 1)),
        }

    def answers(self) -> _Answers:
        """Run what is compared."""
        return _Answers(self._step(len(self._rows)), self._engine.decode(self._ends, (self._engine.contract.horizon,)))

    def _step(self, members: int) -> list[Latents]:
        """Take a step, in as many forwards as it needs, and wait for what it gives."""
        largest = self._engine.contract.buckets[-1]
        groups = [self._rows[start : start + largest] for start in range(0, members, largest)]
        return [np.asarray(state) for group in groups for state in self._engine.step(group[:members])]


def time_in_turns(
    ways: Mapping[str, Mapping[str, Callable[[], object]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time every stage of every backend once a round, backends in turns; a first round does not count."""
    taken: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in stages} for name, stages in ways.items()}
    for stage in next(iter(ways.values())):
        for number in range(rounds + 1):
            for name, stages in ways.items():
                started = time.perf_counter()
                stages[stage]()
                if number:
                    taken[name][stage].append((time.perf_counter() - started) * 1000)
    return taken


def _say_times(taken: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Return medians in ms, and by how much a backend is faster than the one that it is compared with."""
    found: dict[str, object] = {}
    for stage, values in taken.items():
        ratio = statistics.median(other / own for own, other in zip(values, reference[stage], strict=True))
        found[f"{stage}, ms"] = round(statistics.median(values), 3)
        found[f"{stage}, times faster"] = round(ratio, 3)
    return found


def _compare(answers: _Answers, reference: _Answers) -> dict[str, float]:
    states, expected = np.stack(answers.states), np.stack(reference.states)
    apart = np.linalg.norm(states - expected) / np.linalg.norm(expected)
    levels = np.abs(answers.frames.astype(int) - reference.frames).max()
    return {"states apart, share": float(apart), "largest difference of pixels": int(levels)}


def read_backends(text: str | None) -> tuple[str, ...]:
    """Read names with commas between them. Raises Fault for one that is none."""
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if name not in BACKENDS:
            raise Fault(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    return names
