"""A bundle's engines: real ones of the embedded model built by TensorRT-RTX, and whole ones run on a toy GPU."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from foreframe_engines import (
    Bundle,
    BundleError,
    RuntimeUnavailable,
    builtin_bundle,
    open_rollout_engine,
    write_manifest,
)
from foreframe_engines.golden import Goldens, record_rollout
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary, find_library
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.selftest import random_rows
from foreframe_engines.tensorrt_engine import (
    EngineSpec,
    GraphBuild,
    Target,
    approve_graphs,
    beside,
    build_graphs,
    graph_precision,
    open_tensorrt_engine,
)
from foreframe_engines.testing_gpu import ToyGpu

BUCKETS = (1, 2)
EMBEDDED = ("step", "decode", "frame_step")


def no_goldens() -> Goldens:
    raise AssertionError("only fp8 needs runs before it builds")


@pytest.fixture(scope="module")
def rtx() -> TensorRtLibrary:
    try:
        return find_library(("tensorrt-rtx",))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def embedded(rtx: TensorRtLibrary) -> EngineSpec:
    return EngineSpec(Bundle.open(builtin_bundle()), Target(rtx, "sm89"), Precision.FP32, BUCKETS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def built(embedded: EngineSpec, cache: EngineCache) -> dict[str, GraphBuild]:
    return build_graphs(embedded, cache, no_goldens, EMBEDDED)


def bindings(build: GraphBuild) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in (*build.stored.record.inputs, *build.stored.record.outputs)}


def test_the_embedded_models_engines_are_real_ones(built: dict[str, GraphBuild]) -> None:
    for name, build in built.items():
        assert build.refusal == ""
        assert not build.is_from_cache
        assert build.stored.record.plan_bytes > 1_000_000, name
        assert build.stored.plan_path.stat().st_size == build.stored.record.plan_bytes


def test_their_bindings_are_the_contracts(built: dict[str, GraphBuild], embedded: EngineSpec) -> None:
    contract = embedded.bundle.contract
    step, decode, frame_step = (bindings(built[name]) for name in EMBEDDED)
    row = (None, contract.num_latents, *contract.latent_shape)
    assert step["latents"] == TensorSpec("latents", "float32", row)
    assert step["latents_next"] == TensorSpec("latents_next", "float32", row)
    assert step["time"].shape == (None, contract.num_latents)
    height, width = contract.camera.height, contract.camera.width
    assert decode["frames"] == TensorSpec("frames", "uint8", (None, None, height, width, 3))
    assert frame_step["ids"] == TensorSpec("ids", "int64", (None, contract.tokens.tokens))
    assert frame_step["keys"].shape[1:3] == (None, None)


def test_keys_say_everything_an_engine_depends_on(built, embedded: EngineSpec, rtx: TensorRtLibrary) -> None:
    files = json.loads((embedded.bundle.path / "manifest.json").read_text())["files"]
    for name, build in built.items():
        key = build.stored.record.key
        assert key.graph_sha256 == files[f"{name}.onnx"]["sha256"]
        assert (key.library, key.library_version) == ("tensorrt-rtx", rtx.version)
        assert (key.architecture, key.precision, key.driver) == ("sm89", "fp32", "")
        assert [profile.split()[0] for profile in key.profiles] == ["b:1..1..1", "b:2..2..2"]
    assert len({build.stored.record.key.weights_sha256 for build in built.values()}) == 1


def test_what_is_built_is_found_again(built, embedded: EngineSpec, cache: EngineCache) -> None:
    again = build_graphs(embedded, cache, no_goldens, EMBEDDED)
    assert all(build.is_from_cache for build in again.values())
    assert [build.stored.record for build in again.values()] == [build.stored.record for build in built.values()]


def test_a_damaged_engine_is_built_again(built, embedded: EngineSpec, cache: EngineCache) -> None:
    plan = built["decode"].stored.plan_path
    plan.write_bytes(plan.read_bytes()[:-1])
    (again,) = build_graphs(embedded, cache, no_goldens, ["decode"]).values()
    assert not again.is_from_cache
    assert again.stored.plan_path.stat().st_size == again.stored.record.plan_bytes


def test_a_graph_that_is_refused_says_why_and_the_others_are_built(embedded: EngineSpec, cache: EngineCache) -> None:
    builds = build_graphs(embedded, cache, no_goldens, ["top_k", "encode"])
    assert builds["top_k"].stored is None
    assert "top_k.onnx: input 'k' decides a shape" in builds["top_k"].refusal
    assert builds["encode"].stored is not None


def test_an_architecture_that_the_library_lacks_stops_the_build(embedded: EngineSpec, cache: EngineCache) -> None:
    spec = replace(embedded, target=replace(embedded.target, architecture="sm90"))
    with pytest.raises(RuntimeUnavailable, match="not sm90"):
        build_graphs(spec, cache, no_goldens)


def test_only_what_is_run_often_loses_bits() -> None:
    chosen = {name: graph_precision(name, Precision.FP8) for name in ("step", "decode", "condition", "tokenize")}
    assert chosen == {"step": "fp8", "decode": "bf16", "condition": "fp32", "tokenize": "fp32"}
    assert graph_precision("step", Precision.BF16) == "bf16"


def test_engines_lie_beside_the_bundle() -> None:
    bundle = Bundle.open(builtin_bundle())
    assert beside(bundle).folder == builtin_bundle().parent / "eve_tabletop.engines"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ToyGpu:
    toy = ToyGpu()
    for name, module in toy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return toy


@pytest.fixture
def spec(gpu: ToyGpu, bundle_folder: Path) -> EngineSpec:
    return EngineSpec(
        Bundle.open(bundle_folder), Target.of_device(find_library(), CudaDevice()), Precision.FP32, (1, 2, 4)
    )


@pytest.fixture
def goldens(spec: EngineSpec) -> Iterator[Goldens]:
    with closing(open_rollout_engine(spec.bundle, num_threads=1)) as engine:
        yield record_rollout(spec.bundle, engine.sessions, spec.buckets)


def approved(spec: EngineSpec, goldens: Goldens, cache: EngineCache) -> dict[str, GraphBuild]:
    builds = build_graphs(spec, cache, no_goldens)
    return approve_graphs(builds, spec, cache, CudaDevice(), goldens, "onnxruntime")


def test_a_bundle_on_a_gpu_gives_what_onnxruntime_gives(spec: EngineSpec, goldens: Goldens, tmp_path: Path) -> None:
    builds = approved(spec, goldens, EngineCache(tmp_path / "engines"))
    assert all(build.is_approved for build in builds.values())
    assert builds["step"].stored.record.parity.reference == "onnxruntime"
    ours = open_tensorrt_engine(builds, spec, CudaDevice(), num_threads=1)
    with closing(ours), closing(open_rollout_engine(spec.bundle, num_threads=1)) as reference:
        rows = random_rows(reference, 3)
        expected = reference.step(rows)
        for one, other in zip(ours.step(rows), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(ours.decode(expected, (1, 8)), reference.decode(expected, (1, 8)))


def test_an_engine_that_differs_never_serves(spec, goldens, gpu: ToyGpu, tmp_path: Path) -> None:
    gpu.error = 0.1
    cache = EngineCache(tmp_path / "engines")
    builds = approved(spec, goldens, cache)
    assert builds["step"].stored is None
    assert "step: 'out' differs from onnxruntime" in builds["step"].refusal
    with pytest.raises(RuntimeUnavailable, match="the step graph has no engine: step: 'out' differs"):
        open_tensorrt_engine(builds, spec, CudaDevice(), num_threads=1)
    again = build_graphs(spec, cache, no_goldens)["step"]
    assert again.is_from_cache
    assert not again.is_approved  # what was refused is not taken for good the next time


def test_an_engine_that_was_never_compared_does_not_serve(spec: EngineSpec, tmp_path: Path) -> None:
    builds = build_graphs(spec, EngineCache(tmp_path / "engines"), no_goldens)
    with pytest.raises(RuntimeUnavailable, match="the engine of encode was never compared with a reference"):
        open_tensorrt_engine(builds, spec, CudaDevice(), num_threads=1)


def test_an_approved_engine_is_not_compared_again(spec, goldens, gpu: ToyGpu, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    approved(spec, goldens, cache)
    num_builds = gpu.num_builds
    builds = approve_graphs(build_graphs(spec, cache, no_goldens), spec, cache, CudaDevice(), {}, "nothing")
    assert all(build.is_approved and build.is_from_cache for build in builds.values())
    assert gpu.num_builds == num_builds


def test_refused_graphs_stay_on_onnxruntime(spec, goldens, gpu: ToyGpu, tmp_path: Path) -> None:
    gpu.refused = ("ConvTranspose",)
    builds = approved(spec, goldens, EngineCache(tmp_path / "engines"))
    assert builds["decode"].refusal.startswith("decode.onnx: tensorrt refuses node")
    with closing(open_tensorrt_engine(builds, spec, CudaDevice(), num_threads=1)) as engine:
        assert {name: session.device for name, session in engine.sessions.items()} == {
            "encode": "cuda",
            "condition": "cuda",
            "step": "cuda",
            "decode": "cpu",
        }
        (latents,) = engine.step(random_rows(engine, 1))
        assert engine.decode([latents], (1,)).shape == (1, 1, 8, 8, 3)


def test_another_gpu_or_driver_gets_engines_of_its_own(spec: EngineSpec, tmp_path: Path, gpu: ToyGpu) -> None:
    cache = EngineCache(tmp_path / "engines")
    build_graphs(spec, cache, no_goldens, ["step"])
    for change in ({"driver": "13.2"}, {"architecture": "sm100"}, {"cuda": "13.3"}):
        other = replace(spec, target=replace(spec.target, **change))
        (build,) = build_graphs(other, cache, no_goldens, ["step"]).values()
        assert not build.is_from_cache, change
    assert gpu.num_builds == 4


def test_timings_of_a_build_serve_the_next(spec: EngineSpec, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    builds = build_graphs(spec, cache, no_goldens, ["step", "decode"])
    assert cache.read_timings(builds["step"].stored.record.key) == b".."  # the toy adds a dot each time


def test_a_graph_that_leaves_its_folder_stops_the_build(spec: EngineSpec, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(spec.bundle.path, tmp_path / "leaving"))
    model = onnx.load(folder / "step.onnx", load_external_data=False)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.external_data)
    weight.external_data[0].value = "../outside.safetensors"
    (folder / "step.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"step\.onnx: 'latent_weight' lies outside the folder"):
        build_graphs(replace(spec, bundle=Bundle.open(folder)), EngineCache(tmp_path / "engines"), no_goldens)
