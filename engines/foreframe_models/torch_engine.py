"""A bundle's rollout model served by torch: the way onto a GPU where TensorRT is not installed.

Everything that is compiled or recorded is so before the engine is returned, never while a request waits.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from foreframe_engines.bundle import Bundle, GraphName
from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_engines.runtime.torch_memory import require_device
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_engines.types import Contract
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE
from foreframe_models.export import Models, picture_graphs_of
from foreframe_models.graph import Graph
from foreframe_models.reference import build_models
from foreframe_models.rollout import RolloutModel
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.wan import WanTransformer
from foreframe_models.weights import WEIGHTS

SMALL_BUCKETS = (1, 2, 4)
"""Forwards whose kernels end sooner than the host can start the next ones, on a large GPU."""

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
_SINGLE = ("time_embedder", "time_proj", "scale_shift_table", "norm")
"""Parts of the transformer that compute in float32 anyway: stored so, they need no conversion at every step."""
_MAX_COMPILED = 1024
"""Forms of a block that a process may hold: by size, precision, guidance and place, of every model it ever opens."""


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How torch runs a model.

    device: as torch names it. precision: of the transformer and a video autoencoder; norms, modulation, time embedding
    and states stay float32. is_compiled: the transformer's blocks go through torch.compile, once for each bucket.
    graph_buckets: forwards of these sizes are recorded as CUDA graphs. compiler: torch.compile's backend.
    """

    device: str = "cpu"
    precision: Precision = Precision.FP32
    is_compiled: bool = False
    graph_buckets: tuple[int, ...] = ()
    compiler: str = "inductor"


def open_torch_engine(bundle: Bundle, options: TorchOptions) -> GraphRolloutEngine:
    """Open a bundle's rollout model on torch; between steps its states stay on the device.

    Raises BundleError when the bundle was not exported by this package, or its weights do not fit; RuntimeUnavailable
    when the device is missing or cannot do what is asked.
    """
    require_options(options)
    models = load_models_onto(bundle.path, options)
    if options.is_compiled:
        compile_blocks(models.rollout.transformer, options.compiler)
    graphs = picture_graphs_of(models) | flow_graphs_of(models.rollout, solver=bundle.contract.sampler.solver)
    return run_graphs(bundle.contract, graphs, options)


def require_options(options: TorchOptions) -> None:
    """Raise RuntimeUnavailable, in one line, for what this machine or torch cannot do."""
    require_device(torch, options.device)
    if options.precision not in DTYPES:
        raise RuntimeUnavailable(f"torch runs a model in {' or '.join(DTYPES)}, not {options.precision}")
    if options.graph_buckets and torch.device(options.device).type != "cuda":
        raise RuntimeUnavailable(f"CUDA graphs need a CUDA device; {options.device!r} was asked for")


def load_models_onto(bundle_path: Path, options: TorchOptions) -> Models:
    """Load a bundle's rollout half straight onto the device, each tensor in the type it is computed in.

    No more than one model at a time is in the host's memory. Raises BundleError.
    """
    with torch.device("meta"):
        models = replace(build_models(bundle_path), tokens=None)
    lower_transformer(models.rollout.transformer, options.precision)
    if not isinstance(models.autoencoder, FrameAutoencoder):  # which is small, and keeps no float32 where it matters
        models.autoencoder.to(DTYPES[options.precision])
    try:
        with safe_open(bundle_path / WEIGHTS, "pt") as file:
            _load_tensors(models, file, options.device)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"{WEIGHTS} does not fit {MODEL_FILE}: {error}") from error
    return models


def place_rollout(rollout: RolloutModel, options: TorchOptions) -> None:
    """Move a rollout model to the device in its precision, in place; compile its blocks where that is asked for."""
    lower_transformer(rollout.transformer, options.precision)
    rollout.to(options.device)
    if options.is_compiled:
        compile_blocks(rollout.transformer, options.compiler)


def lower_transformer(transformer: WanTransformer, precision: Precision) -> None:
    """Store what computes in `precision` in it, in place; what computes in float32 whatever its type stays float32."""
    for name, parameter in transformer.named_parameters():
        if not any(part in name for part in _SINGLE):
            parameter.data = parameter.data.to(DTYPES[precision])


def compile_blocks(transformer: WanTransformer, compiler: str = "inductor") -> None:
    """Compile the repeated blocks, in place: equal ones share what is compiled, at their first call of each size."""
    config: Any = torch._dynamo.config  # noqa: SLF001 - where torch keeps its limits, and nowhere else
    config.recompile_limit = max(config.recompile_limit, _MAX_COMPILED)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _MAX_COMPILED)
    for block in transformer.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=compiler)


def run_graphs(contract: Contract, graphs: Mapping[str, Graph], options: TorchOptions) -> GraphRolloutEngine:
    """Open graphs whose models are placed already, and warm them up."""
    sessions = {name: _open(graphs[name].module, graphs[name], options) for name in _rollout_names(graphs)}
    for bucket in sorted(contract.buckets, reverse=True):
        for name in ("step", "step_guided"):
            if name in sessions:
                _warm_up(sessions[name], _examples(graphs[name], bucket), bucket, options)
    return GraphRolloutEngine(contract, sessions, determinism="bucketed", is_resident=True)


def _load_tensors(models: Models, file: Any, device: str) -> None:  # noqa: ANN401 - safetensors has no types
    named = models.by_name()
    left = {name for name in file.keys() if name.partition(".")[0] in named}  # noqa: SIM118 - it is no mapping
    for prefix, model in named.items():
        wanted = model.state_dict()
        tensors = {name: file.get_tensor(f"{prefix}.{name}").to(device, like.dtype) for name, like in wanted.items()}
        model.load_state_dict(tensors, assign=True)
        model.to(device).eval()  # moves what the file does not hold
        left -= {f"{prefix}.{name}" for name in wanted}
    if left:
        raise BundleError(f"{WEIGHTS} holds {min(left)!r}, which {MODEL_FILE} has no use for")


def _rollout_names(graphs: Iterable[str]) -> Iterator[GraphName]:
    return (name for name in get_args(GraphName) if name in graphs)


def _open(module: nn.Module, graph: Graph, options: TorchOptions) -> TorchSession:
    return TorchSession(module, tuple(graph.inputs), graph.outputs, device=options.device)


def _warm_up(session: TorchSession, examples: Mapping[str, np.ndarray], bucket: int, options: TorchOptions) -> None:
    if bucket in options.graph_buckets:
        session.record(examples)
    elif options.is_compiled:
        session.run(examples)


def _examples(graph: Graph, bucket: int) -> dict[str, np.ndarray]:
    """Make inputs of a bucket's size from a graph's own examples."""
    return {name: np.repeat(tensor[:1].cpu().numpy(), bucket, axis=0) for name, tensor in graph.inputs.items()}
