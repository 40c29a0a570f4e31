import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreframe_engines import ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.torch_session import TorchSession


class SumAndDifference(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b


def test_inputs_go_by_name_and_outputs_come_as_named() -> None:
    session = TorchSession(SumAndDifference(), ["a", "b"], ["sum", "difference"])
    inputs = {"b": np.full(2, 1, np.float32), "a": np.full(2, 3, np.float32)}
    outputs = session.run(inputs)
    assert outputs["sum"].tolist() == [4, 4]
    assert outputs["difference"].tolist() == [2, 2]


def test_a_sole_output_needs_no_tuple() -> None:
    outputs = TorchSession(nn.Identity(), ["x"], ["y"]).run({"x": np.arange(3, dtype=np.uint8)})
    np.testing.assert_array_equal(outputs["y"], np.arange(3, dtype=np.uint8))


def test_arrays_that_may_not_be_written_are_taken_and_kept() -> None:
    values = np.zeros(3, np.float32)
    values.flags.writeable = False
    outputs = TorchSession(nn.ReLU(inplace=True), ["x"], ["y"]).run({"x": values - 1})
    assert outputs["y"].tolist() == [0, 0, 0]
    assert TorchSession(nn.Identity(), ["x"], ["y"]).run({"x": values})["y"].base is not values


def test_a_module_is_run_in_evaluation_mode_without_gradients() -> None:
    session = TorchSession(nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 4)), ["x"], ["y"])
    inputs = {"x": np.ones((1, 4), np.float32)}
    np.testing.assert_array_equal(session.run(inputs)["y"], session.run(inputs)["y"])


@pytest.mark.parametrize("inputs", [{}, {"x": np.ones((1, 5), np.float32)}], ids=["missing", "shape"])
def test_a_run_that_fails_is_a_model_fault(inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelFault, match="Linear failed"):
        TorchSession(nn.Linear(4, 4), ["x"], ["y"]).run(inputs)


def test_a_missing_library_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Identity()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        TorchSession(module, ["x"], ["y"])


def test_the_reference_runs_in_full_precision() -> None:
    outputs = TorchSession(nn.Identity(), ["x"], ["y"]).run({"x": np.ones(1, np.float32)})
    assert outputs["y"].dtype == np.float32
    assert torch.get_default_dtype() == torch.float32


def test_a_device_that_is_not_here_is_refused_in_one_line() -> None:
    for device, message in (("cuda:9", "'cuda:9' was asked for"), ("abacus", "torch knows no device 'abacus'")):
        with pytest.raises(RuntimeUnavailable, match=message) as caught:
            TorchSession(nn.Identity(), ["x"], ["y"], device=device)
        assert "\n" not in str(caught.value)


def test_a_graph_is_recorded_on_cuda_alone() -> None:
    with pytest.raises(RuntimeUnavailable, match="CUDA graphs need a CUDA device"):
        TorchSession(nn.Identity(), ["x"], ["y"]).record({"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("rows", [{}, {"x": [np.ones(5, np.float32)]}], ids=["missing", "shape"])
def test_a_resident_run_that_fails_is_a_model_fault(rows: dict[str, list[np.ndarray]]) -> None:
    with pytest.raises(ModelFault, match="Linear failed"):
        TorchSession(nn.Linear(4, 4), ["x"], ["y"]).run_resident(rows, 1)


def test_rows_from_host_and_device_meet_on_the_device() -> None:
    session = TorchSession(SumAndDifference(), ["a", "b"], ["sum", "difference"])
    ones, twos = (np.full(3, number, np.float32) for number in (1, 2))
    outputs = session.run_resident({"a": [twos, twos], "b": [ones, ones]}, 2)
    sums, differences = (outputs[name].rows(2) for name in ("sum", "difference"))
    mixed = session.run_resident({"a": [sums[1], ones], "b": [differences[0], twos]}, 4)["sum"]
    np.testing.assert_array_equal(mixed.to_host(), [[4] * 3, [3] * 3, [0] * 3, [0] * 3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_recorded_forward_gives_what_the_module_gives() -> None:
    session = TorchSession(nn.Linear(4, 4), ["x"], ["y"], device="cuda")
    inputs = [{"x": np.random.default_rng(seed).random((2, 4), np.float32)} for seed in range(3)]
    expected = [session.run(each)["y"] for each in inputs]
    session.record(inputs[0])
    kept = [session.run_resident({"x": list(each["x"])}, 2)["y"] for each in inputs]
    for batch, values in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(batch.to_host(), values)
