"""Which engine is fastest is measured in fact, remembered, and what is chosen gives the same answers."""

import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import Bundle, ModelFault, builtin_bundle, open_rollout_engine
from foreframe_engines.candidates import onnxruntime_candidates
from foreframe_engines.choice import (
    Choice,
    ChoiceKey,
    ChosenRolloutEngine,
    Measured,
    keep_choice,
    measure_choice,
    name_machine,
    open_fastest_engine,
    read_choice,
)
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.selftest import random_rows
from foreframe_engines.testing import ToyRolloutEngine

KEY = ChoiceKey("d" * 64, "a machine", (1, 4))
MS = 1e-3


class PacedEngine(ToyRolloutEngine):
    """A toy whose forwards take a time of their own: so long a call, and so long a row."""

    def __init__(self, call_ms: float, row_ms: float, decode_ms: float = 0.0) -> None:
        super().__init__()
        self.call_ms, self.row_ms, self.decode_ms = call_ms, row_ms, decode_ms
        self.num_steps = 0
        self.is_closed = False

    def step(self, rows):
        self.num_steps += 1
        spend(self.call_ms + self.row_ms * len(rows))
        return super().step(rows)

    def decode(self, latents, frame_indices):
        spend(self.decode_ms)
        return super().decode(latents, frame_indices)

    def close(self):
        self.is_closed = True
        super().close()


def spend(ms: float) -> None:
    """Be busy for a while, as a forward is."""
    until = time.perf_counter() + ms * MS
    while time.perf_counter() < until:
        pass


class OddEngine(PacedEngine):
    """A toy that gives other bytes than the others do."""

    def step(self, rows):
        return [state + np.float32(1e-6) for state in super().step(rows)]


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def choice_of(**measured: tuple[float, float, float]) -> Choice:
    """Make a choice from `name=(step of 1, step of 4, decode)`."""
    return Choice(
        KEY, {name: Measured({1: one, 4: four}, decode, "same") for name, (one, four, decode) in measured.items()}
    )


def test_the_faster_of_two_engines_is_found_for_each_number_of_rows() -> None:
    engines = {"nimble": PacedEngine(0, 2), "broad": PacedEngine(4, 0.1, decode_ms=8)}
    choice = measure_choice(engines, KEY, rounds=3)
    assert choice.steppers == {1: "nimble", 4: "broad"}
    assert choice.decoder == "nimble"
    assert choice.measured["broad"].step_ms[1] == pytest.approx(4.1, rel=0.5)


def test_the_measurement_follows_the_engines_and_not_their_order() -> None:
    for names in (("a", "b"), ("b", "a")):
        engines = {name: PacedEngine(0, 1 if name == "a" else 3, decode_ms=1 if name == "a" else 3) for name in names}
        assert measure_choice(engines, KEY, rounds=3).chosen == {"a"}


def test_another_engine_is_opened_only_where_it_gains_enough() -> None:
    close = choice_of(first=(10, 40, 20), second=(10.5, 38, 19))
    assert close.chosen == {"second"}  # fastest over all; the first's lead of 5 % is not worth a second engine
    far = choice_of(first=(10, 40, 20), second=(20, 38, 10))
    assert far.home == "first"
    assert far.steppers == {1: "first", 4: "first"}
    assert far.decoder == "second"


def test_steps_go_to_the_engine_that_was_chosen_for_so_many() -> None:
    engines = {"nimble": PacedEngine(0, 0), "broad": PacedEngine(0, 0)}
    engine = ChosenRolloutEngine(engines, choice_of(nimble=(1, 9, 1), broad=(5, 5, 5)))
    rows = random_rows(engine, 4)
    for count, name in ((1, "nimble"), (2, "broad"), (4, "broad")):
        before = engines[name].num_steps
        engine.step(rows[:count])
        assert engines[name].num_steps == before + 1
    engine.close()
    assert all(each.is_closed for each in engines.values())


def test_answers_are_those_of_one_engine() -> None:
    engines = {"nimble": PacedEngine(0, 0), "broad": PacedEngine(0, 0)}
    engine = ChosenRolloutEngine(engines, choice_of(nimble=(1, 9, 1), broad=(5, 5, 5)))
    toy = ToyRolloutEngine()
    rows = random_rows(toy, 4)
    for one, other in zip(engine.step(rows), toy.step(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(engine.decode(toy.step(rows), (1, 8)), toy.decode(toy.step(rows), (1, 8)))


def test_determinism_is_promised_only_where_the_chosen_ones_agree() -> None:
    same = {"nimble": PacedEngine(0, 2), "broad": PacedEngine(4, 0.1)}
    assert ChosenRolloutEngine(same, measure_choice(same, KEY, rounds=2)).determinism == "bitwise"
    other = {"nimble": PacedEngine(0, 2), "odd": OddEngine(4, 0.1)}
    choice = measure_choice(other, KEY, rounds=2)
    assert choice.chosen == {"nimble", "odd"}
    assert ChosenRolloutEngine(other, choice).determinism == "tolerance"


def test_what_was_measured_is_not_measured_again(cache: EngineCache) -> None:
    opened: list[PacedEngine] = []

    def opening(row_ms: float):
        def open_engine() -> PacedEngine:
            opened.append(PacedEngine(0, row_ms, row_ms))
            return opened[-1]

        return open_engine

    candidates = {"slow": opening(3), "fast": opening(0.5)}
    first = open_fastest_engine(candidates, KEY, cache)
    assert first is opened[1]
    assert [engine.is_closed for engine in opened] == [True, False]
    second = open_fastest_engine(candidates, KEY, cache)
    assert second is opened[2]
    assert (opened[2].row_ms, opened[2].num_steps, len(opened)) == (0.5, 0, 3)


def test_fewer_candidates_choose_from_what_was_measured(cache: EngineCache) -> None:
    keep_choice(choice_of(torch=(1, 1, 1), onnxruntime=(2, 2, 2), other=(3, 3, 3)), cache)
    engine = open_fastest_engine({"onnxruntime": lambda: PacedEngine(0, 7), "other": ToyRolloutEngine}, KEY, cache)
    assert isinstance(engine, PacedEngine)
    assert engine.num_steps == 0


def test_a_new_candidate_is_measured(cache: EngineCache) -> None:
    keep_choice(choice_of(old=(1, 1, 1)), cache)
    open_fastest_engine({"old": ToyRolloutEngine, "new": ToyRolloutEngine}, KEY, cache)
    assert set(read_choice(KEY, cache).measured) == {"old", "new"}


@pytest.mark.parametrize("change", [{"bundle_digest": "e" * 64}, {"machine": "another"}, {"buckets": (1, 8)}])
def test_a_choice_holds_for_one_bundle_machine_and_sizes(cache: EngineCache, change: dict[str, object]) -> None:
    keep_choice(choice_of(a=(1, 2, 3)), cache)
    assert read_choice(KEY, cache) == choice_of(a=(1, 2, 3))
    assert read_choice(replace(KEY, **change), cache) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"key": {}, "measured": {}}'])
def test_a_choice_that_cannot_be_read_is_measured_again(cache: EngineCache, content: bytes) -> None:
    cache.write(KEY.file_name, content)
    assert read_choice(KEY, cache) is None


def test_a_choice_of_another_machine_in_our_place_is_refused(cache: EngineCache) -> None:
    other = choice_of(a=(1, 2, 3))
    content = {**asdict(other), "key": asdict(replace(KEY, machine="theirs"))}
    cache.write(KEY.file_name, json.dumps(content).encode())
    assert read_choice(KEY, cache) is None


def test_a_cache_that_takes_no_files_costs_the_memory_and_not_the_start(tmp_path: Path, caplog) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    engine = open_fastest_engine({"a": ToyRolloutEngine}, KEY, EngineCache(blocked / "engines"))
    assert isinstance(engine, ToyRolloutEngine)
    assert "the measurement is not kept" in caplog.text


def test_engines_are_closed_when_one_cannot_be_opened_or_run(cache: EngineCache) -> None:
    good = PacedEngine(0, 0)

    def fail() -> ToyRolloutEngine:
        raise ModelFault("it does not open")

    with pytest.raises(ModelFault, match="does not open"):
        open_fastest_engine({"good": lambda: good, "bad": fail}, KEY, cache)
    assert good.is_closed


def test_machines_have_names() -> None:
    assert "cores" in name_machine()
    assert name_machine("sm90").endswith("cores, sm90")
    assert name_machine(report=Path("/nowhere"))


def test_onnxruntimes_ways_are_two_and_agree(cache: EngineCache) -> None:
    bundle = Bundle.open(builtin_bundle())
    candidates = onnxruntime_candidates(bundle, num_threads=2)
    assert len(candidates) == 2
    key = ChoiceKey(bundle.digest, name_machine(), (1, 2))
    with closing(open_fastest_engine(candidates, key, cache)) as engine:
        choice = read_choice(key, cache)
        assert set(choice.measured) == set(candidates)
        assert choice.agrees_bitwise
        assert engine.determinism == "bitwise"
        rows = random_rows(engine, 2)
        with closing(open_rollout_engine(bundle, num_threads=1)) as plain:
            for one, other in zip(engine.step(rows), plain.step(rows), strict=True):
                np.testing.assert_array_equal(one, other)


CHECKED = """
from jaxtyping import install_import_hook
names = [f"foreframe_engines.{name}" for name in ("choice", "swapping", "selftest", "testing")]
with install_import_hook(names, "beartype.beartype"):
    from foreframe_engines.choice import ChoiceKey, ChosenRolloutEngine, measure_choice
    from foreframe_engines.runtime.parity import TOLERANCES
    from foreframe_engines.selftest import random_rows
    from foreframe_engines.swapping import SwappingRolloutEngine
    from foreframe_engines.testing import ToyRolloutEngine
engines = {name: ToyRolloutEngine() for name in "ab"}
chosen = ChosenRolloutEngine(engines, measure_choice(engines, ChoiceKey("d", "m", (1, 2)), rounds=1))
engine = SwappingRolloutEngine(chosen, ToyRolloutEngine, tolerance=TOLERANCES["fp32"])
engine.start()
print(engine.join(60.0).stage)
rows = random_rows(engine, 2)
print(engine.decode(engine.step(rows), (1,)).shape)
try:
    chosen.encode(rows[0].latents)
except Exception as error:
    print(type(error).__name__)
"""


def test_arrays_are_what_the_annotations_say() -> None:
    # -B: what a hooked import imports in passing would be kept unchecked, where a later hook takes it for checked.
    done = subprocess.run([sys.executable, "-B", "-c", CHECKED], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["serving", "(2, 1, 8, 8, 3)", "TypeCheckError"], done.stderr[-2000:]
