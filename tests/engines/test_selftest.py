"""Determinism levels are measured; engines with planted faults of either kind are told apart from sound ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import GRAPHS, Bundle, GraphRolloutEngine, StepRow, measure_determinism, open_rollout_engine
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.selftest import weaker
from foreframe_engines.testing import LeakyToyEngine, ToyRolloutEngine, toy_contract


class BucketedToyEngine(ToyRolloutEngine):
    """A toy whose rows are rounded otherwise in every bucket, and never touch."""

    def step(self, rows: Sequence[StepRow]) -> list[np.ndarray]:
        bucket = next(size for size in self.contract.buckets if size >= len(rows))
        return [latents * np.float32(1 + bucket * 2**-20) for latents in super().step(rows)]


class PositionalToyEngine(ToyRolloutEngine):
    """A toy whose rows feel their place in the batch."""

    def step(self, rows: Sequence[StepRow]) -> list[np.ndarray]:
        return [latents + np.float32(place * 2**-10) for place, latents in enumerate(super().step(rows))]


class DriftingToyEngine(ToyRolloutEngine):
    """A toy that never answers twice the same."""

    def step(self, rows: Sequence[StepRow]) -> list[np.ndarray]:
        return [latents + np.float32(self.calls["step"] * 2**-10) for latents in super().step(rows)]


BUCKETS = [(1,), (1, 2), (1, 3), (2, 4), (1, 2, 4, 8, 16)]


@pytest.mark.parametrize("buckets", BUCKETS)
def test_rows_that_never_touch_are_bitwise(buckets: tuple[int, ...]) -> None:
    assert measure_determinism(ToyRolloutEngine(toy_contract(buckets=buckets))) == "bitwise"


@pytest.mark.parametrize("buckets", BUCKETS[1:])
def test_rows_that_depend_on_the_bucket_alone_are_bucketed(buckets: tuple[int, ...]) -> None:
    assert measure_determinism(BucketedToyEngine(toy_contract(buckets=buckets))) == "bucketed"


@pytest.mark.parametrize("faulty", [LeakyToyEngine, PositionalToyEngine, DriftingToyEngine])
@pytest.mark.parametrize("buckets", BUCKETS[1:])
def test_rows_that_depend_on_company_place_or_time_are_within_a_tolerance(
    buckets: tuple[int, ...], faulty: type[ToyRolloutEngine]
) -> None:
    assert measure_determinism(faulty(toy_contract(buckets=buckets))) == "tolerance"


def test_an_engine_that_steps_rows_alone_is_still_asked_twice() -> None:
    assert measure_determinism(DriftingToyEngine(toy_contract(buckets=(1,)))) == "tolerance"
    assert measure_determinism(LeakyToyEngine(toy_contract(buckets=(1,)))) == "bitwise"


def test_only_the_buckets_in_use_count() -> None:
    leaky = LeakyToyEngine()
    assert measure_determinism(leaky, (1,)) == "bitwise"
    assert max(leaky.step_rows) == 1
    assert measure_determinism(leaky, (1, 2)) == "tolerance"
    assert max(leaky.step_rows) == 2


def test_onnx_runtime_with_a_row_a_forward_is_bitwise(golden_bundle: Path) -> None:
    engine = open_rollout_engine(Bundle.open(golden_bundle), num_threads=2)
    assert measure_determinism(engine) == engine.determinism == "bitwise"
    engine.close()


def test_a_graph_that_leaks_is_within_a_tolerance(leaky_bundle: Path) -> None:
    bundle = Bundle.open(leaky_bundle)
    sessions = {name: OrtSession(bundle.graph_path(name), num_threads=1) for name in GRAPHS}
    engine = GraphRolloutEngine(bundle.contract, sessions)
    assert measure_determinism(engine) == "tolerance"
    engine.close()


def test_the_weaker_of_two_levels_promises_less():
    assert weaker("bitwise", "tolerance") == weaker("tolerance", "bitwise") == "tolerance"
    assert weaker("bucketed", "bitwise") == "bucketed"
    assert weaker("bitwise", "bitwise") == "bitwise"
