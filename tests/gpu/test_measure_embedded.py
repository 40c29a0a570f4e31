"""The measuring script runs where there is no GPU too, and refuses to time a step that is wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

SPEC = importlib.util.spec_from_file_location("measure_embedded", Path(__file__).with_name("measure_embedded.py"))
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(script, "BATCHES", (1, 2))
    monkeypatch.setattr(script, "ROUNDS", 1)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)
def test_a_report_holds_parity_and_times_of_every_way(device):
    report = script.measure(torch.device(device), is_compiled=False)
    for result in report["step"]:
        assert set(result["ms"]) == set(result["max_abs_error"]) >= {"torch eager"}
        assert all(ms > 0 for ms in result["ms"].values())


def test_a_step_that_differs_is_not_timed(monkeypatch):
    build_rows = script.build_rows
    monkeypatch.setattr(script, "build_rows", lambda *a: (build_rows(*a)[0], build_rows(*a)[1] + np.float32(0.01)))
    with pytest.raises(AssertionError, match="torch eager"):
        script.measure(torch.device("cpu"), is_compiled=False)
