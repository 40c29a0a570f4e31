from pathlib import Path

import onnx
import pytest

from foreframe_engines import BundleError
from foreframe_engines.runtime.onnx_files import read_graph


def move_weights(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_a_graph_is_read_without_its_weights(network: Path) -> None:
    graph = read_graph(network)
    assert graph.weight_files == ("weights.bin",)
    assert graph.weight_bytes == 2 * 2 * 128 * 128
    assert network.stat().st_size < 10_000


@pytest.mark.parametrize("place", ["../outside.bin", "/outside.bin", "", "folder/outside.bin", "..", "c:outside.bin"])
def test_weights_outside_the_folder_are_refused_by_name(network: Path, place: str) -> None:
    (network.parent.parent / "outside.bin").write_bytes(bytes(10**6))
    move_weights(network, location=place)
    with pytest.raises(BundleError, match=r"network\.onnx: 'w0' lies outside the folder"):
        read_graph(network)


def test_a_link_out_of_the_folder_is_refused(network: Path) -> None:
    weights = network.parent / "weights.bin"
    outside = weights.rename(network.parent.parent / "outside.bin")
    weights.symlink_to(outside)
    with pytest.raises(BundleError, match=r"'weights\.bin' is not a plain file"):
        read_graph(network)


def test_missing_weights_are_named(network: Path) -> None:
    (network.parent / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"'w0' lies in 'weights\.bin', which is no file"):
        read_graph(network)


def test_weights_beyond_the_end_of_their_file_are_refused_with_numbers(network: Path) -> None:
    move_weights(network, offset="50000")
    with pytest.raises(BundleError, match=r"'w0' ends at byte 82768, 'weights\.bin' has 65536"):
        read_graph(network)


@pytest.mark.parametrize("number", ["-1", "x", "1e3", "²"])
def test_a_place_that_is_no_number_is_refused(network: Path, number: str) -> None:
    move_weights(network, offset=number)
    with pytest.raises(BundleError, match="no number of bytes"):
        read_graph(network)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08" * 100])
def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.onnx is not a readable ONNX graph"):
        read_graph(path)


def test_weights_inside_nodes_may_not_lie_in_a_file(network: Path) -> None:
    model = onnx.load(network, load_external_data=False)
    inner = onnx.helper.make_node("Constant", [], ["c"], value=model.graph.initializer[0])
    branch = onnx.helper.make_graph([inner], "branch", [], [])
    holder = onnx.helper.make_node("If", ["condition"], [], then_branch=branch, else_branch=branch)
    model.graph.node.append(holder)
    network.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="only an initializer of the graph may lie in one other file"):
        read_graph(network)
