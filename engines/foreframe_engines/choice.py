"""Which way to run a model is fastest on this machine, by how many rows share a step: measured, then kept on disk.

Candidates are whole engines of one bundle, so what is compared is what will serve. Knows no runtime.
"""

import hashlib
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.engine import RolloutEngine
from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.selftest import point_at_zero, random_rows, weaker
from foreframe_engines.strict_json import JsonRecord, parse_json
from foreframe_engines.types import Conditioning, Contract, Latents, StepRow, StepState

ROUNDS = 5
MIN_GAIN = 1.1
"""How much faster another engine must be to be opened beside the one that is fastest over all."""

_log = logging.getLogger(__name__)

OpenEngine = Callable[[], RolloutEngine]


@dataclass(frozen=True, slots=True)
class ChoiceKey:
    """What a measurement holds for; see `name_machine`."""

    bundle_digest: str
    machine: str
    buckets: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """Where the measurement is kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"choice-{digest[:32]}.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one candidate took, in ms: a step by the bucket its rows fill, and all frames of one member.

    answer: digest of what equal rows gave.
    """

    step_ms: Mapping[int, float]
    decode_ms: float
    answer: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What every candidate took, and which is fastest; candidates are named with what they run on."""

    key: ChoiceKey
    measured: Mapping[str, Measured]

    @property
    def home(self) -> str:
        """The candidate that is fastest over all; others are used only where they gain enough."""
        return min(self.measured, key=lambda name: sum(self.measured[name].step_ms.values()))

    @property
    def steppers(self) -> dict[int, str]:
        """The candidate for the steps of every bucket."""
        return {
            bucket: self._fastest({name: took.step_ms[bucket] for name, took in self.measured.items()})
            for bucket in self.key.buckets
        }

    @property
    def decoder(self) -> str:
        """The candidate that decodes."""
        return self._fastest({name: took.decode_ms for name, took in self.measured.items()})

    @property
    def chosen(self) -> frozenset[str]:
        """Every candidate that is needed."""
        return frozenset({*self.steppers.values(), self.decoder})

    @property
    def agrees_bitwise(self) -> bool:
        """Whether those gave equal bytes for equal rows."""
        return len({self.measured[name].answer for name in self.chosen}) == 1

    def among(self, names: Iterable[str]) -> "Choice":
        """Return the choice between fewer candidates."""
        return Choice(self.key, {name: self.measured[name] for name in names})

    def _fastest(self, ms: Mapping[str, float]) -> str:
        best, home = min(ms, key=lambda name: ms[name]), self.home
        return best if ms[home] >= MIN_GAIN * ms[best] else home


class ChosenRolloutEngine:
    """Several engines of one bundle as one: each step goes to the one that is fastest for its number of rows.

    Conditioning that one of them made serves all: engines of one bundle share its form.
    """

    def __init__(self, engines: Mapping[str, RolloutEngine], choice: Choice) -> None:
        """Take over the engines that were chosen."""
        self.contract: Contract = engines[choice.decoder].contract
        self.choice = choice
        self.determinism = _determinism(list(engines.values()), choice)
        self.num_lanes = max(engines[name].num_lanes for name in choice.steppers.values())
        self._engines = dict(engines)
        self._steppers = choice.steppers
        self._decoder = engines[choice.decoder]

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        return self._decoder.encode(context)

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units) into what every step of every member needs."""
        return self._decoder.condition(context_latents, states)

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:
        """Put a member's noise for the future behind the clean context latents."""
        return self._decoder.initial_latents(conditioning, noise)

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return self._decoder.noise_shape()

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Advance each row by one solver step, on the engine that is fastest for so many."""
        bucket = next((bucket for bucket in self._steppers if bucket >= len(rows)), max(self._steppers))
        return self._engines[self._steppers[bucket]].step(rows)

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:
        """Return where the step that led from `previous` to `state` points at time 0."""
        return self._decoder.denoise(previous, state, time, next_time)

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode the frames 1..H asked for. Raises ModelFault when latents are not finite."""
        return self._decoder.decode(latents, frame_indices)

    def close(self) -> None:
        """Free every engine."""
        _close_all(self._engines)


def open_fastest_engine(candidates: Mapping[str, OpenEngine], key: ChoiceKey, cache: EngineCache) -> RolloutEngine:
    """Open the engines that are fastest here; they are measured the first time and known from then on.

    A candidate that is not chosen is closed again; where the cache takes no files, the next start measures anew.
    Raises what opening or running a candidate raises.
    """
    known = read_choice(key, cache)
    if known is not None and candidates.keys() <= known.measured.keys():
        choice = known.among(candidates)
        return _as_one(_open_all({name: candidates[name] for name in choice.chosen}), choice)
    engines = _open_all(candidates)
    try:
        choice = measure_choice(engines, key)
    except BaseException:
        _close_all(engines)
        raise
    try:
        keep_choice(choice, cache)
    except RuntimeUnavailable as error:
        _log.warning("the measurement is not kept: %s", error)
    _close_all({name: engines.pop(name) for name in engines.keys() - choice.chosen})
    return _as_one(engines, choice)


def measure_choice(engines: Mapping[str, RolloutEngine], key: ChoiceKey, rounds: int = ROUNDS) -> Choice:
    """Time every engine on equal rows, in turns, after one run of each that is not counted. Raises ModelFault."""
    first = next(iter(engines.values()))
    rows = random_rows(first, key.buckets[-1])
    steps: dict[int, Mapping[str, float]] = {}
    for bucket in key.buckets:
        runs = {name: _stepping(engine, rows[:bucket]) for name, engine in engines.items()}
        steps[bucket] = _time_in_turns(runs, rounds)
    latents = point_at_zero(first, rows[:1], first.step(rows[:1]))
    decodes = _time_in_turns({name: _decoding(engine, latents) for name, engine in engines.items()}, rounds)
    return Choice(
        key,
        {
            name: Measured({bucket: took[name] for bucket, took in steps.items()}, decodes[name], _digest(engine, rows))
            for name, engine in engines.items()
        },
    )


def read_choice(key: ChoiceKey, cache: EngineCache) -> Choice | None:
    """Return what was measured before, None where nothing was, or nothing that can be read."""
    with suppress(OSError, BundleError, UnicodeDecodeError):
        return _choice_from_json((cache.folder / key.file_name).read_text(encoding="utf-8"), key)
    return None


def keep_choice(choice: Choice, cache: EngineCache) -> Choice:
    """Write a choice into the cache. Raises RuntimeUnavailable when that takes no files."""
    cache.write(choice.key.file_name, (json.dumps(asdict(choice), indent=2) + "\n").encode())
    return choice


def name_machine(gpu: str = "", report: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor, how many cores this process may use, and the GPU if there is one."""
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(models, platform.machine())
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join(part for part in (processor, f"{num_cores} cores", gpu) if part)


def _stepping(engine: RolloutEngine, rows: Sequence[StepRow]) -> Callable[[], object]:
    return lambda: engine.step(rows)


def _decoding(engine: RolloutEngine, latents: Sequence[Latents]) -> Callable[[], object]:
    return lambda: engine.decode(latents, range(1, engine.contract.horizon + 1))


def _time_in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:
                taken[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in taken.items()}


def _digest(engine: RolloutEngine, rows: Sequence[StepRow]) -> str:
    return hashlib.sha256(b"".join(np.asarray(state).tobytes() for state in engine.step(rows))).hexdigest()


def _determinism(engines: Sequence[RolloutEngine], choice: Choice) -> str:
    level = "bitwise" if choice.agrees_bitwise else "tolerance"
    for engine in engines:
        level = weaker(level, engine.determinism)
    return level


def _as_one(engines: Mapping[str, RolloutEngine], choice: Choice) -> RolloutEngine:
    return next(iter(engines.values())) if len(engines) == 1 else ChosenRolloutEngine(engines, choice)


def _open_all(candidates: Mapping[str, OpenEngine]) -> dict[str, RolloutEngine]:
    engines: dict[str, RolloutEngine] = {}
    try:
        for name, open_engine in candidates.items():
            engines[name] = open_engine()
    except BaseException:
        _close_all(engines)
        raise
    return engines


def _close_all(engines: Mapping[str, RolloutEngine]) -> None:
    for engine in engines.values():
        engine.close()


def _choice_from_json(text: str, key: ChoiceKey) -> Choice:
    record = JsonRecord(parse_json(text, key.file_name), key.file_name, ("key", "measured"))
    if record.value("key") != json.loads(json.dumps(asdict(key))):
        raise BundleError(f"{key.file_name} is of another machine or bundle")
    measured = record.value("measured")
    if not isinstance(measured, dict):
        raise BundleError(f"{record.at('measured')}: expected an object")
    each = record.record("measured", tuple(measured))
    keys = ("step_ms", "decode_ms", "answer")
    return Choice(key, {name: _measured(each.record(name, keys), key) for name in measured})


def _measured(record: JsonRecord, key: ChoiceKey) -> Measured:
    steps = record.record("step_ms", tuple(map(str, key.buckets)))
    step_ms = {bucket: steps.number(str(bucket)) for bucket in key.buckets}
    return Measured(step_ms, record.number("decode_ms"), record.text("answer"))
