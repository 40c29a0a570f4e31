"""A bundle on TensorRT or TensorRT-RTX: its graphs built once, checked against a reference, then opened.

A graph that the library refuses stays on ONNX Runtime. An engine that has not been checked never serves.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from foreframe_engines.bundle import Bundle, GraphName, rollout_graph_names
from foreframe_engines.errors import BundleError, ModelFault, RuntimeUnavailable
from foreframe_engines.golden import Goldens
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.cuda import CudaDevice
from foreframe_engines.runtime.engine_cache import EngineCache, EngineKey, EngineRecord, StoredEngine
from foreframe_engines.runtime.onnx_files import GraphFile, parse_graph
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.parity import TOLERANCES, check_parity
from foreframe_engines.runtime.ranges import measure_ranges
from foreframe_engines.runtime.session import Session
from foreframe_engines.runtime.tensorrt import TensorRtSession
from foreframe_engines.runtime.tensorrt_builder import BuildOrder, Length, Profile, build_engine
from foreframe_engines.runtime.tensorrt_library import TensorRtLibrary
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.types import Contract

_EXACT_GRAPHS = ("condition", "tokenize", "top_k")
"""Run once a request, or give ids: what precision saves there it costs many times over elsewhere."""
_FP8_GRAPHS = ("step", "frame_step")
_FLAGS = ("strongly_typed", "no_tf32_in_fp32")


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What engines are built for. `cuda` and `driver` are empty where they do not matter."""

    library: TensorRtLibrary
    architecture: str
    cuda: str = ""
    driver: str = ""

    @classmethod
    def of_device(cls, library: TensorRtLibrary, device: CudaDevice) -> "Target":
        """Build for the GPU that is here."""
        if library.is_portable:
            return cls(library, device.architecture)
        return cls(library, device.architecture, device.runtime, device.driver)


@dataclass(frozen=True, slots=True, eq=False)
class EngineSpec:
    """Which bundle's engines, for what, in which precision, for forwards of which sizes."""

    bundle: Bundle
    target: Target
    precision: Precision
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GraphBuild:
    """What became of one graph: an engine, or why the library refuses it."""

    graph: str
    precision: Precision
    stored: StoredEngine | None
    refusal: str = ""
    is_from_cache: bool = False

    @property
    def is_approved(self) -> bool:
        """Whether the engine agreed with a reference."""
        return self.stored is not None and self.stored.record.parity is not None


Builds = Mapping[str, GraphBuild]


def build_graphs(
    spec: EngineSpec, cache: EngineCache, goldens: Callable[[], Goldens], names: Iterable[str] | None = None
) -> dict[str, GraphBuild]:
    """Find or build the engines of graphs, by default of all; a refused graph says why.

    goldens: runs of every graph, asked for only where fp8's ranges have to be measured. Raises BundleError for a graph
    that is damaged or leaves its folder, RuntimeUnavailable when the library cannot build for the target at all.
    """
    digests = {name: file.sha256 for name, file in spec.bundle.files.items()}
    profiles = profiles_of(spec.bundle.contract, spec.buckets)
    builds = {}
    for name in graph_names(spec.bundle) if names is None else names:
        chosen = graph_precision(name, spec.precision)
        order = BuildOrder(_read(spec.bundle, name), spec.target.architecture, profiles, chosen)
        key = _key(name, order, spec.target, digests)
        try:
            builds[name] = _find_or_build(key, order, spec.target, cache, goldens)
        except BundleError as error:
            builds[name] = GraphBuild(name, chosen, None, str(error))
    return builds


def approve_graphs(
    builds: Builds, spec: EngineSpec, cache: EngineCache, device: CudaDevice, goldens: Goldens, reference: str
) -> dict[str, GraphBuild]:
    """Run every engine on the reference's inputs and keep what it agreed with.

    One that differs is dropped, and its refusal says by how much. Engines that were approved before are not run.
    """
    approved = dict(builds)
    for name, build in builds.items():
        if build.stored is None or build.is_approved:
            continue
        session = TensorRtSession(build.stored, spec.target.library, device)
        try:
            parity = check_parity(name, session, goldens[name], TOLERANCES[build.precision], reference)
            approved[name] = replace(build, stored=cache.approve(build.stored, parity))
        except ModelFault as fault:
            approved[name] = replace(build, stored=None, refusal=str(fault))
        finally:
            session.close()
    return approved


def open_tensorrt_engine(
    builds: Builds, spec: EngineSpec, device: CudaDevice, *, num_threads: int
) -> GraphRolloutEngine:
    """Run a bundle's rollout model with the engines that were approved, refused graphs on ONNX Runtime's CPU.

    Raises RuntimeUnavailable for an engine that was never compared with a reference, or when the step has none.
    """
    sessions: dict[GraphName, Session] = {}
    if builds["step"].stored is None:
        raise RuntimeUnavailable(f"the step graph has no engine: {builds['step'].refusal}")
    for graph in rollout_graph_names(spec.bundle.graphs):
        build = builds[graph]
        if build.stored is None:
            sessions[graph] = OrtSession(spec.bundle.graph(graph), num_threads=num_threads)
        elif build.is_approved:
            sessions[graph] = TensorRtSession(build.stored, spec.target.library, device)
        else:
            raise RuntimeUnavailable(f"the engine of {graph} was never compared with a reference; build it on this GPU")
    return GraphRolloutEngine(spec.bundle.contract, sessions, determinism="bucketed", buckets=spec.buckets)


def graph_names(bundle: Bundle) -> tuple[str, ...]:
    """Name the graphs that a bundle has."""
    return tuple(name for name, file in asdict(bundle.graphs).items() if file is not None)


def graph_precision(graph: str, precision: Precision) -> Precision:
    """Return what a graph is built in where the model is asked for in `precision`."""
    if graph in _EXACT_GRAPHS:
        return Precision.FP32
    return Precision.BF16 if precision is Precision.FP8 and graph not in _FP8_GRAPHS else precision


def profiles_of(contract: Contract, buckets: tuple[int, ...]) -> tuple[Profile, ...]:
    """Return a profile a bucket: so many rows, frames decoded one by one, and any past that the contract allows."""
    longest = 1 if contract.tokens is None else contract.tokens.max_grids
    past = Length(1, (1 + longest) // 2, longest)
    return tuple({"b": Length.fixed(bucket), "f": Length.fixed(1), "p": past} for bucket in buckets)


def beside(bundle: Bundle) -> EngineCache:
    """Return the cache beside a bundle, whose own folder takes no other files."""
    folder = bundle.path.resolve()
    return EngineCache(folder.with_name(f"{folder.name}.engines"))


def _find_or_build(
    key: EngineKey, order: BuildOrder, target: Target, cache: EngineCache, goldens: Callable[[], Goldens]
) -> GraphBuild:
    stored = cache.find(key)
    if stored is not None:
        return GraphBuild(key.graph, order.precision, stored, is_from_cache=True)
    ranges = measure_ranges(order.graph, goldens()[key.graph]) if order.precision is Precision.FP8 else None
    built = build_engine(target.library, replace(order, ranges=ranges, timings=cache.read_timings(key)))
    digest = hashlib.sha256(built.plan).hexdigest()
    record = EngineRecord(key, digest, len(built.plan), built.seconds, built.inputs, built.outputs)
    cache.write_timings(key, built.timings)
    return GraphBuild(key.graph, order.precision, cache.store(record, built.plan))


def _key(name: str, order: BuildOrder, target: Target, digests: Mapping[str, str]) -> EngineKey:
    weights = "".join(digests[file] for file in order.graph.weight_files)
    return EngineKey(
        graph=name,
        graph_sha256=digests[order.graph.path.name],
        weights_sha256=hashlib.sha256(weights.encode()).hexdigest(),
        library=target.library.name,
        library_version=target.library.version,
        cuda=target.cuda,
        driver=target.driver,
        architecture=target.architecture,
        profiles=tuple(_say_profile(profile) for profile in order.profiles),
        precision=order.precision,
        flags=_FLAGS,
    )


def _say_profile(profile: Profile) -> str:
    return " ".join(f"{axis}:{each.least}..{each.usual}..{each.most}" for axis, each in sorted(profile.items()))


def _read(bundle: Bundle, name: str) -> GraphFile:
    file = str(getattr(bundle.graphs, name))
    return parse_graph(bundle.checked[file], bundle.path / file)
