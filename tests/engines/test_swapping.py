"""Serving goes on while a better engine is prepared; it takes over whole, or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from foreframe_engines import ModelFault, RolloutEngine, RuntimeUnavailable
from foreframe_engines.runtime.parity import TOLERANCES
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.selftest import random_rows
from foreframe_engines.swapping import Handover, Stage, SwappingRolloutEngine
from foreframe_engines.testing import ToyRolloutEngine, toy_contract

TOLERANCE = TOLERANCES[Precision.FP32]
TIMEOUT_S = 30.0


class NamedEngine(ToyRolloutEngine):
    """A toy that says which one it is: off by `error`, counting what is asked of it, open until it is closed."""

    def __init__(self, error: float = 0.0, **switches) -> None:
        super().__init__(**switches)
        self.error = np.float32(error)
        self.num_calls = 0
        self.num_closed = 0

    def step(self, rows):
        assert not self.num_closed, "a closed engine was asked"
        self.num_calls += 1
        states = [state * (1 + self.error) for state in super().step(rows)]
        assert not self.num_closed, "an engine was closed while it ran"
        return states

    def close(self):
        self.num_closed += 1
        super().close()


def swapping(fallback: RolloutEngine, prepare, **options) -> SwappingRolloutEngine:
    return SwappingRolloutEngine(fallback, prepare, tolerance=TOLERANCE, **options)


def test_the_fallback_serves_until_the_better_one_is_there() -> None:
    fallback, better, gate = NamedEngine(), NamedEngine(1e-5), threading.Event()
    engine = swapping(fallback, lambda: gate.wait(TIMEOUT_S) and better)
    engine.start()
    rows = random_rows(engine, 2)
    np.testing.assert_array_equal(engine.step(rows)[0], ToyRolloutEngine().step(rows)[0])
    assert engine.handover == Handover(Stage.PREPARING)
    assert better.num_calls == 0
    gate.set()
    assert engine.join(TIMEOUT_S) == Handover(Stage.SERVING)
    np.testing.assert_array_equal(engine.step(rows)[0], NamedEngine(1e-5).step(rows)[0])
    assert (fallback.num_closed, better.num_closed) == (1, 0)
    engine.close()
    assert (fallback.num_closed, better.num_closed) == (1, 1)


def test_conditioning_and_states_of_the_fallback_serve_after_the_handover() -> None:
    gate = threading.Event()
    engine = swapping(NamedEngine(), lambda: gate.wait(TIMEOUT_S) and NamedEngine())
    engine.start()
    rows = random_rows(engine, 2)
    halfway = engine.step(rows)
    gate.set()
    engine.join(TIMEOUT_S)
    later = [replace(row, latents=state) for row, state in zip(rows, halfway, strict=True)]
    expected = ToyRolloutEngine().step(later)
    for one, other in zip(engine.step(later), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(engine.decode(halfway, (1,)), ToyRolloutEngine().decode(halfway, (1,)))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda: NamedEngine(0.05), "the better engine: 'latents' differs from the fallback"),
        (lambda: raising(RuntimeUnavailable("no engine was built")), "no engine was built"),
        (lambda: raising(KeyError("oops")), "KeyError: 'oops'"),
        (lambda: ToyRolloutEngine(replace(toy_contract(), revision="2")), "toy 2 is another model"),
    ],
    ids=["differs", "refused", "bug", "other model"],
)
def test_what_is_not_better_is_refused_and_the_fallback_goes_on(prepare, reason: str, caplog) -> None:
    fallback, told = NamedEngine(), []
    engine = swapping(fallback, prepare, on_end=told.append)
    engine.start()
    handover = engine.join(TIMEOUT_S)
    assert handover.stage is Stage.REFUSED
    assert reason in handover.reason
    assert told == [handover]
    assert "the fallback goes on serving" in caplog.text
    assert engine.step(random_rows(engine, 1))
    assert fallback.num_closed == 0


def test_an_engine_that_fails_while_it_is_compared_is_closed() -> None:
    class Failing(NamedEngine):
        def step(self, rows):
            raise ModelFault("the GPU fell over")

    better = Failing()
    engine = swapping(NamedEngine(), lambda: better)
    engine.start()
    assert "fell over" in engine.join(TIMEOUT_S).reason
    assert better.num_closed == 1


def test_calls_from_many_threads_are_answered_by_one_engine_each() -> None:
    fallback, better, gate = NamedEngine(), NamedEngine(1e-5), threading.Event()
    engine = swapping(fallback, lambda: gate.wait(TIMEOUT_S) and better)
    engine.start()
    rows = random_rows(engine, 4)
    answers = {
        each.error: [state.tobytes() for state in NamedEngine(each.error).step(rows)] for each in (fallback, better)
    }

    def ask(number: int) -> bool:
        if number == 40:
            gate.set()
        return [state.tobytes() for state in engine.step(rows)] in answers.values()

    with ThreadPoolExecutor(8) as pool:
        whole = list(pool.map(ask, range(400)))
        engine.join(TIMEOUT_S)
        whole += pool.map(ask, range(41, 60))
    assert all(whole)
    assert fallback.num_calls > 1
    assert better.num_calls > 1
    assert (fallback.num_closed, better.num_closed) == (1, 0)


def test_a_mixed_answer_would_be_seen() -> None:
    rows = random_rows(NamedEngine(), 2)
    one, other = ([state.tobytes() for state in NamedEngine(error).step(rows)] for error in (0.0, 1e-5))
    assert [one[0], other[1]] not in (one, other)


def test_a_call_that_runs_keeps_its_engine_open() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow(NamedEngine):
        def decode(self, latents, frame_indices):
            if threading.current_thread().name == "asker":
                inside.set()
                go_on.wait(TIMEOUT_S)
                assert self.num_closed == 0
            return super().decode(latents, frame_indices)

    fallback, gate, answers = Slow(), threading.Event(), []
    engine = swapping(fallback, lambda: gate.wait(TIMEOUT_S) and NamedEngine())
    engine.start()
    latents = engine.step(random_rows(engine, 1))
    asker = threading.Thread(target=lambda: answers.append(engine.decode(latents, (1,))), name="asker")
    asker.start()
    inside.wait(TIMEOUT_S)
    gate.set()
    assert engine.join(TIMEOUT_S).stage is Stage.SERVING
    assert fallback.num_closed == 0
    go_on.set()
    asker.join()
    assert fallback.num_closed == 1
    assert len(answers) == 1


def test_what_is_ready_after_the_end_is_closed() -> None:
    fallback, better, gate = NamedEngine(), NamedEngine(), threading.Event()
    engine = swapping(fallback, lambda: gate.wait(TIMEOUT_S) and better)
    engine.start()
    engine.close()
    assert fallback.num_closed == 1
    gate.set()
    engine.join(TIMEOUT_S)
    assert better.num_closed == 1


def test_equal_bytes_are_not_promised_while_engines_may_change() -> None:
    assert NamedEngine().determinism == "bitwise"
    assert swapping(NamedEngine(), NamedEngine).determinism == "tolerance"


def test_it_is_an_engine() -> None:
    assert isinstance(swapping(NamedEngine(), NamedEngine), RolloutEngine)


def raising(error: Exception) -> RolloutEngine:
    raise error
