import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from foreframe_engines import BundleError, ModelFault, RuntimeUnavailable
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.session import TensorSpec


def test_a_session_runs_its_graph_by_names(golden_bundle: Path) -> None:
    session = OrtSession(golden_bundle / "encode.onnx", num_threads=1)
    assert session.device == "cpu"
    assert session.inputs == (TensorSpec("frames", "uint8", (1, 4, 8, 8, 3)),)
    assert session.output_names == ("latents",)
    outputs = session.run({"frames": np.full((1, 4, 8, 8, 3), 255, np.uint8)})
    np.testing.assert_array_equal(outputs["latents"], np.ones((1, 4, 3, 4, 4), np.float32))
    session.close()


def test_outputs_are_of_numpys_own_types(golden_likelihood_bundle: Path) -> None:
    session = OrtSession(golden_likelihood_bundle / "tokenize.onnx", num_threads=1)
    assert session.run({"frames": np.zeros((1, 3, 8, 8, 3), np.uint8)})["ids"].dtype.type is np.int64
    session.close()


def test_axes_of_free_length_are_none(golden_bundle: Path) -> None:
    session = OrtSession(golden_bundle / "step.onnx", num_threads=1)
    assert session.inputs[0] == TensorSpec("latents", "float32", (None, 12, 3, 4, 4))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"frames": np.zeros((1, 4, 8, 8, 3), np.float32)},
        {"frames": np.zeros((1, 4, 9, 8, 3), np.uint8)},
        {"other": np.zeros((1, 4, 8, 8, 3), np.uint8)},
    ],
    ids=["missing", "dtype", "shape", "name"],
)
def test_a_run_that_fails_is_a_model_fault(golden_bundle: Path, inputs: dict[str, np.ndarray]) -> None:
    session = OrtSession(golden_bundle / "encode.onnx", num_threads=1)
    with pytest.raises(ModelFault, match=r"encode\.onnx failed"):
        session.run(inputs)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08" * 100])
def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.onnx is not a readable ONNX graph"):
        OrtSession(path, num_threads=1)


def test_a_graph_that_the_library_refuses_is_named(golden_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(golden_bundle / "encode.onnx")
    model.graph.node[0].input[0] = "nothing"
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"odd\.onnx does not load: .*nothing"):
        OrtSession(path, num_threads=1)


def test_a_missing_graph_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'nothing\.onnx' cannot be read"):
        OrtSession(tmp_path / "nothing.onnx", num_threads=1)


@pytest.mark.parametrize("is_absolute", [False, True])
def test_weights_outside_the_folder_are_not_read(bundle_folder: Path, is_absolute: bool) -> None:
    outside = bundle_folder.parent / "outside.safetensors"
    outside.write_bytes((bundle_folder / "model.safetensors").read_bytes())
    path = bundle_folder / "step.onnx"
    model = onnx.load(path, load_external_data=False)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.external_data)
    weight.external_data[0].value = str(outside) if is_absolute else "../outside.safetensors"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"step\.onnx: 'latent_weight' lies outside the folder"):
        OrtSession(path, num_threads=1)


def test_a_provider_that_is_not_here_is_named(golden_bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="not NoSuchExecutionProvider"):
        OrtSession(golden_bundle / "encode.onnx", num_threads=1, provider="NoSuchExecutionProvider")


def test_a_missing_library_comes_with_its_remedy(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match="pip install onnxruntime"):
        OrtSession(golden_bundle / "encode.onnx", num_threads=1)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"frames": [np.zeros((4, 8, 8, 3), np.float32)]},
        {"frames": [np.zeros((4, 9, 8, 3), np.uint8)]},
        {"other": [np.zeros((4, 8, 8, 3), np.uint8)]},
    ],
    ids=["missing", "dtype", "shape", "name"],
)
def test_a_resident_run_that_fails_is_a_model_fault(golden_bundle: Path, inputs: dict[str, list[np.ndarray]]) -> None:
    session = OrtSession(golden_bundle / "encode.onnx", num_threads=1)
    with pytest.raises(ModelFault, match=r"encode\.onnx failed"):
        session.run_resident(inputs, 1)


def test_resident_outputs_outlive_their_session(golden_bundle: Path) -> None:
    session = OrtSession(golden_bundle / "encode.onnx", num_threads=1)
    frames = np.random.default_rng(0).integers(0, 256, (1, 4, 8, 8, 3), dtype=np.uint8)
    expected = session.run({"frames": frames})["latents"]
    batch = session.run_resident({"frames": list(frames)}, 1)["latents"]
    for _ in range(20):
        session.run_resident({"frames": [255 - frames[0]]}, 1)
    session.close()
    np.testing.assert_array_equal(batch.to_host(), expected)


def test_resident_ids_are_of_numpys_own_types(golden_likelihood_bundle: Path) -> None:
    session = OrtSession(golden_likelihood_bundle / "tokenize.onnx", num_threads=1)
    ids = session.run_resident({"frames": [np.zeros((3, 8, 8, 3), np.uint8)]}, 1)["ids"]
    assert ids.to_host().dtype.type is np.int64
    session.close()


def test_a_provider_that_falls_back_to_the_cpu_is_refused(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU build does without a GPU: CUDA is listed, and the session runs on the CPU without an error."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(RuntimeUnavailable, match="offers CPUExecutionProvider here, not CUDAExecutionProvider"),
    ):
        OrtSession(golden_bundle / "encode.onnx", num_threads=1, provider="CUDAExecutionProvider")
