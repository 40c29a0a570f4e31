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
