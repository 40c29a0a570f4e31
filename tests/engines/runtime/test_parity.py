import numpy as np
import pytest

from foreframe_engines import ModelFault
from foreframe_engines.runtime.parity import TOLERANCES, GoldenRun, RecordingSession, check_parity, compare_outputs
from foreframe_engines.runtime.typed_graph import Precision

FP32 = TOLERANCES[Precision.FP32]
RNG = np.random.default_rng(0)


class Doubling:
    """A session of one product, off by `error`."""

    input_names, output_names, device = ("x",), ("y",), "cpu"

    def __init__(self, error: float = 0.0):
        self.error = error

    def run(self, inputs):
        return {"y": inputs["x"] * np.float32(2 + self.error)}

    def close(self):
        pass


def recorded_runs() -> list[GoldenRun]:
    recorder = RecordingSession(Doubling())
    for size in (3, 5):
        recorder.run({"x": RNG.standard_normal((size, 4), dtype=np.float32)})
    return recorder.runs


def test_recorded_runs_replay_equal() -> None:
    parity = check_parity("double", Doubling(), recorded_runs(), FP32, "itself")
    assert (parity.reference, parity.num_runs, parity.share, parity.max_abs) == ("itself", 2, 0.0, 0.0)


def test_the_share_of_what_is_allowed_is_measured() -> None:
    parity = check_parity("double", Doubling(1e-3), recorded_runs(), FP32, "itself")
    assert parity.worst == "y"
    assert parity.share == pytest.approx(0.5, rel=1e-3)


def test_a_session_that_differs_is_refused_with_numbers() -> None:
    with pytest.raises(ModelFault, match=r"double: 'y' differs from itself 10\.0 times as much as is allowed, by 0\.0"):
        check_parity("double", Doubling(0.02), recorded_runs(), FP32, "itself")


def test_nothing_to_compare_is_no_parity() -> None:
    with pytest.raises(ModelFault, match="nothing to compare"):
        check_parity("double", Doubling(), [], FP32, "itself")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_never_near(value: float) -> None:
    expected = {"y": np.ones(1000, np.float32)}
    given = {"y": np.ones(1000, np.float32)}
    given["y"][7] = value
    with pytest.raises(ModelFault, match="inf times"):
        compare_outputs("graph", given, expected, FP32, "it")


@pytest.mark.parametrize(
    "given",
    [{}, {"y": np.ones(3, np.float64)}, {"y": np.ones((3, 1), np.float32)}],
    ids=["missing", "dtype", "shape"],
)
def test_another_form_is_refused_before_values_are_read(given: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelFault, match=r"is .* not float32"):
        compare_outputs("graph", given, {"y": np.ones(3, np.float32)}, FP32, "it")


def test_pixels_may_round_to_the_other_side_now_and_then() -> None:
    expected = np.full((100, 100), 7, np.uint8)
    given = expected.copy()
    given[0] = 8
    parity = compare_outputs("frames", {"y": given}, {"y": expected}, FP32, "it")
    assert parity.share == pytest.approx(0.4)
    with pytest.raises(ModelFault):
        compare_outputs("frames", {"y": expected + np.uint8(1)}, {"y": expected}, FP32, "it")


def test_ids_differ_or_do_not() -> None:
    expected = np.zeros(10_000, np.int64)
    given = expected.copy()
    given[:5] = 60_000
    assert compare_outputs("ids", {"y": given}, {"y": expected}, FP32, "it").share == pytest.approx(0.5)
    given[:50] = 1
    with pytest.raises(ModelFault):
        compare_outputs("ids", {"y": given}, {"y": expected}, FP32, "it")


def test_fewer_bits_are_allowed_more() -> None:
    order = [TOLERANCES[precision].relative_rms for precision in Precision]
    assert order == sorted(order)
    assert len(set(order)) == 3
