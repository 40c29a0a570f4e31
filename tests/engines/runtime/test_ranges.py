from pathlib import Path

import numpy as np
import pytest

from foreframe_engines import BundleError
from foreframe_engines.runtime import typed_graph
from foreframe_engines.runtime.onnx_files import read_graph
from foreframe_engines.runtime.parity import GoldenRun
from foreframe_engines.runtime.ranges import measure_ranges
from foreframe_engines.runtime.typed_graph import fp8_products


@pytest.fixture(autouse=True)
def nothing_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_graph, "NUM_SPARED", 1)


def run_of(values: np.ndarray) -> GoldenRun:
    return GoldenRun({"x": values}, {})


def test_the_largest_magnitudes_are_found_over_all_runs(make_network) -> None:
    path: Path = make_network(layers=3)
    graph = read_graph(path)
    (product,) = fp8_products(graph.proto)
    weights = np.frombuffer((path.parent / "weights.bin").read_bytes(), np.float16).reshape(3, 128, 128)
    small, large = (np.full((2, 128), scale, np.float32) for scale in (0.1, -0.9))
    ranges = measure_ranges(graph, [run_of(small), run_of(large)])
    assert set(ranges) == {product.activation, product.weight} == {"t0", "w1"}
    assert ranges["w1"] == np.abs(weights[1]).max()
    assert ranges["t0"] == pytest.approx(np.abs(np.tanh(large @ weights[0].astype(np.float32))).max(), rel=1e-5)


def test_nothing_to_measure_with_is_refused(make_network) -> None:
    with pytest.raises(BundleError, match="no runs"):
        measure_ranges(read_graph(make_network(layers=3)), [])


def test_a_magnitude_without_bounds_is_refused_by_name(make_network) -> None:
    with pytest.raises(BundleError, match="'t0' is not finite"):
        measure_ranges(read_graph(make_network(layers=3)), [run_of(np.full((1, 128), np.nan, np.float32))])


def test_a_graph_too_small_for_fp8_is_refused(make_network) -> None:
    with pytest.raises(BundleError, match=r"network\.onnx has no products that are large enough for fp8"):
        measure_ranges(read_graph(make_network(layers=2)), [run_of(np.zeros((1, 128), np.float32))])
