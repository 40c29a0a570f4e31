"""Build a bundle for a machine: every way to run it is compared with torch, then the fastest are found and kept.

TensorRT's engines are built here; ONNX Runtime and torch run the bundle as it lies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

import torch

from foreframe_engines.bundle import Bundle
from foreframe_engines.candidates import onnxruntime_candidates, tensorrt_candidate
from foreframe_engines.choice import Choice, ChoiceKey, OpenEngine, keep_choice, measure_choice, name_machine
from foreframe_engines.engine import RolloutEngine
from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.golden import Goldens, record_likelihood, record_rollout
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.engine_cache import EngineCache
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.parity import TOLERANCES, GoldenRun, Parity, check_parity
from foreframe_engines.runtime.tensorrt_library import LIBRARIES, TensorRtLibrary, find_library
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.tensorrt_engine import (
    Builds,
    EngineSpec,
    GraphBuild,
    Target,
    approve_graphs,
    beside,
    build_graphs,
    graph_names,
)
from foreframe_models.reference import open_reference_engine, open_reference_likelihood_engine

REFERENCE = "torch"


class Backend(StrEnum):
    """What runs a bundle's graphs."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TORCH = "torch"


@dataclass(frozen=True, slots=True)
class BuildAsk:
    """What to build.

    backends: by default every one that is here. device: `cpu`, `cuda`, or an architecture such as `sm89` that
    TensorRT-RTX builds ahead of time for; by default the GPU if there is one. buckets: batch sizes of a forward, by
    default the contract's. folder: of the engines, by default beside the bundle.
    """

    backends: tuple[Backend, ...] = ()
    device: str | None = None
    precision: Precision = Precision.FP32
    buckets: tuple[int, ...] = ()
    folder: Path | None = None
    num_threads: int = 2


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What became of one graph on one backend; `seconds` and `num_bytes` are of an engine that was built."""

    backend: Backend
    graph: str
    precision: Precision
    parity: Parity | None = None
    seconds: float | None = None
    num_bytes: int | None = None
    is_from_cache: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built and found. `choice` is None where nothing that was built can run here."""

    model: str
    digest: str
    device: str
    folder: Path
    buckets: tuple[int, ...]
    graphs: tuple[GraphReport, ...]
    choice: Choice | None


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """The bundle and the machine that a build is about; `gpu` is None where there is none, or none is asked for."""

    bundle: Bundle
    ask: BuildAsk
    buckets: tuple[int, ...]
    cache: EngineCache
    gpu: CudaDevice | None
    goldens: Callable[[], Goldens]


def build_bundle(path: Path, ask: BuildAsk) -> BuildReport:
    """Compare what was asked for with torch, build what has to be, and find the fastest ways to run.

    Raises BundleError for a bad bundle, RuntimeUnavailable for a backend, device or precision that is not here,
    ModelFault for a backend that differs from torch.
    """
    site = _survey(path, ask)
    backends = ask.backends or _present_backends(site)
    _require_precision(ask, backends)
    reports: list[GraphReport] = []
    candidates: dict[str, OpenEngine] = {}
    for backend in backends:
        found = _BUILDERS[backend](site)
        reports += found.graphs
        candidates |= found.candidates
    choice = _choose(site, candidates) if candidates and "predict" in site.bundle.contract.capabilities else None
    device = ask.device or ("cpu" if site.gpu is None else site.gpu.architecture)
    contract = site.bundle.contract
    return BuildReport(
        f"{contract.model} {contract.revision}",
        site.bundle.digest,
        device,
        site.cache.folder,
        site.buckets,
        tuple(reports),
        choice,
    )


def record_goldens(bundle: Bundle, buckets: tuple[int, ...]) -> Goldens:
    """Run every graph of a bundle on torch, in forwards of every bucket's size. Raises BundleError."""
    runs: dict[str, Sequence[GoldenRun]] = {}
    if "predict" in bundle.contract.capabilities:
        rollout = open_reference_engine(bundle.path)
        runs |= record_rollout(bundle, rollout.sessions, buckets)
        rollout.close()
    if bundle.contract.tokens is not None:
        likelihood = open_reference_likelihood_engine(bundle.path)
        runs |= record_likelihood(bundle, likelihood.sessions, likelihood.memory, buckets)
        likelihood.close()
    return runs


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    graphs: tuple[GraphReport, ...]
    candidates: Mapping[str, OpenEngine]


def _survey(path: Path, ask: BuildAsk) -> _Site:
    bundle = Bundle.open(path)
    buckets = ask.buckets or bundle.contract.buckets
    if list(buckets) != sorted(set(buckets)) or min(buckets) < 1:
        raise BundleError(f"buckets {', '.join(map(str, buckets))}: expected ascending batch sizes")
    folder = beside(bundle) if ask.folder is None else EngineCache(ask.folder)
    return _Site(bundle, ask, buckets, folder, _find_gpu(ask.device), cache(partial(record_goldens, bundle, buckets)))


def _find_gpu(device: str | None) -> CudaDevice | None:
    """Open the GPU where one is asked for, or is here and nothing else is. Raises RuntimeUnavailable."""
    if device == "cuda":
        return CudaDevice()
    if device is not None:
        return None
    try:
        return CudaDevice()
    except RuntimeUnavailable:
        return None


def _present_backends(site: _Site) -> tuple[Backend, ...]:
    if site.ask.device not in {None, "cpu", "cuda"} or site.ask.precision is not Precision.FP32:
        return (Backend.TENSORRT,)
    if site.gpu is None:
        return Backend.ONNXRUNTIME, Backend.TORCH
    return tuple(Backend)


def _require_precision(ask: BuildAsk, backends: Sequence[Backend]) -> None:
    for backend in backends:
        if ask.precision is not Precision.FP32 and backend is not Backend.TENSORRT:
            raise RuntimeUnavailable(f"{backend} computes a bundle in fp32; {ask.precision} is built with tensorrt")


def _build_onnxruntime(site: _Site) -> _Found:
    """Compare ONNX Runtime's CPU provider with torch. Raises ModelFault when it differs."""
    tolerance = TOLERANCES[Precision.FP32]
    reports = []
    for name in graph_names(site.bundle):
        graph = site.bundle.checked[str(getattr(site.bundle.graphs, name))]
        session = OrtSession(graph, num_threads=site.ask.num_threads)
        parity = check_parity(f"{name} on onnxruntime", session, site.goldens()[name], tolerance, REFERENCE)
        session.close()
        reports.append(GraphReport(Backend.ONNXRUNTIME, name, Precision.FP32, parity))
    return _Found(tuple(reports), onnxruntime_candidates(site.bundle, num_threads=site.ask.num_threads))


def _build_torch(site: _Site) -> _Found:
    """Take torch as it is: it is what everything is compared with."""
    return _Found((), {f"torch {torch.__version__} cpu": partial(_open_torch, site)})


def _open_torch(site: _Site) -> RolloutEngine:
    torch.set_num_threads(site.ask.num_threads)
    return open_reference_engine(site.bundle.path)


def _build_tensorrt(site: _Site) -> _Found:
    """Build every graph's engine, and compare it with torch where the GPU it is for is here."""
    spec = EngineSpec(site.bundle, _target(site), site.ask.precision, site.buckets)
    builds: Builds = build_graphs(spec, site.cache, site.goldens)
    if site.gpu is None:
        return _Found(tuple(map(_report, builds.values())), {})
    builds = approve_graphs(builds, spec, site.cache, site.gpu, site.goldens(), REFERENCE)
    candidates = tensorrt_candidate(builds, spec, site.gpu, num_threads=site.ask.num_threads)
    return _Found(tuple(map(_report, builds.values())), candidates)


def _target(site: _Site) -> Target:
    if site.gpu is not None:
        return Target.of_device(find_library(), site.gpu)
    architecture = site.ask.device
    if architecture in {None, "cpu"}:
        raise RuntimeUnavailable("tensorrt needs a GPU, or --device with the architecture of one, such as sm89")
    return Target(_ahead_of_time_library(), str(architecture))


def _ahead_of_time_library() -> TensorRtLibrary:
    return find_library(name for name in LIBRARIES if name == "tensorrt-rtx")


def _report(build: GraphBuild) -> GraphReport:
    if build.stored is None:
        return GraphReport(Backend.TENSORRT, build.graph, build.precision, refusal=build.refusal)
    record = build.stored.record
    return GraphReport(
        Backend.TENSORRT,
        build.graph,
        build.precision,
        record.parity,
        record.seconds,
        record.plan_bytes,
        build.is_from_cache,
    )


def _choose(site: _Site, candidates: Mapping[str, OpenEngine]) -> Choice:
    machine = name_machine("" if site.gpu is None else site.gpu.architecture)
    key = ChoiceKey(site.bundle.digest, machine, site.buckets)
    engines = {name: open_engine() for name, open_engine in candidates.items()}
    try:
        return keep_choice(measure_choice(engines, key), site.cache)
    finally:
        for engine in engines.values():
            engine.close()


_BUILDERS: Mapping[Backend, Callable[[_Site], _Found]] = {
    Backend.ONNXRUNTIME: _build_onnxruntime,
    Backend.TENSORRT: _build_tensorrt,
    Backend.TORCH: _build_torch,
}
