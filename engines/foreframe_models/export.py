"""Write a bundle: four ONNX graphs that share one half-precision safetensors file, contract, statistics, model card.

Weights are stored once as float16 and cast in the graphs, so a graph is kilobytes; the reference runs the same
rounded weights, so parity is about the runtimes alone.
"""

import json
import logging
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from foreframe_engines.bundle import GraphName, write_contract, write_manifest
from foreframe_engines.contract_json import GraphFiles, StateStatistics
from foreframe_engines.types import Contract
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.config_json import MODEL_FILE, ModelConfig, config_to_json
from foreframe_models.rollout import RolloutModel

WEIGHTS = "model.safetensors"
GRAPH_FILES = GraphFiles(encode="encode.onnx", condition="condition.onnx", step="step.onnx", decode="decode.onnx")
MIN_EXTERNAL_BYTES = 4096
"""Tensors below this size stay in the graph; more would cost a page each."""


class Encode(nn.Module):
    """Frames uint8 `1 t h w 3` to clean latents `1 t c y x`."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        """Encode each frame by itself."""
        pictures = frames[0].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.autoencoder.encode(pictures)[None]


class Condition(nn.Module):
    """Physical states `1 n d` to modulation `1 f 6 d` and, if the model has a state map, token offsets `1 f s d`.

    Every bundle's graph is also given the clean context latents `1 t c y x`; this family conditions on states alone.
    """

    def __init__(self, rollout: RolloutModel) -> None:
        super().__init__()
        self.rollout = rollout

    def forward(self, states: Tensor, context_latents: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 - see above
        """Compute what all steps of all members share."""
        modulation, token_bias = self.rollout.condition(self.rollout.normalise(states))
        return (modulation,) if token_bias is None else (modulation, token_bias)


class Step(nn.Module):
    """One solver step of `b` members; the update is inside."""

    def __init__(self, rollout: RolloutModel) -> None:
        super().__init__()
        self.rollout = rollout

    def forward(
        self, latents: Tensor, time: Tensor, next_time: Tensor, modulation: Tensor, token_bias: Tensor | None = None
    ) -> Tensor:
        """Move latents `b t c y x` from times `b t` to `next_time`."""
        return self.rollout.step(latents, time, next_time, modulation, token_bias)


class Decode(nn.Module):
    """Latents `b f c y x` to frames uint8 `b f h w 3`, rounded and clipped."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode each latent by itself."""
        pictures = self.autoencoder.decode(latents.flatten(0, 1))
        grey = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
        return grey.permute(0, 2, 3, 1).unflatten(0, latents.shape[:2])  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph to export: its module, example inputs by name, output names, and the names of dynamic axes."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]


def round_to_half(model: nn.Module) -> None:
    """Round every weight to the nearest float16, in place, keeping float32 storage."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())


def graphs_of(autoencoder: FrameAutoencoder, rollout: RolloutModel) -> dict[GraphName, Graph]:
    """Return the four graphs of a rollout bundle with example inputs."""
    config = rollout.config
    rows, columns = config.latent_size
    channels, patch = autoencoder.config.channels, autoencoder.config.patch
    latents = torch.zeros(2, config.num_latents, channels, rows, columns)
    states = rollout.states_mean.expand(1, config.num_latents, -1).clone()
    condition_inputs = {"states": states, "context_latents": latents[:1, : config.context_latents]}
    tables = Condition(rollout)(**condition_inputs)
    names = ("modulation", "token_bias")[: len(tables)]
    time = torch.full((2, config.num_latents), 0.5)
    step_inputs = {"latents": latents, "time": time, "next_time": time * 0.5}
    step_inputs |= {name: torch.cat([table, table]).detach() for name, table in zip(names, tables, strict=True)}
    frames = torch.zeros(1, config.context_latents, rows * patch, columns * patch, 3, dtype=torch.uint8)
    return {
        "encode": Graph(Encode(autoencoder), {"frames": frames}, ("latents",), {}),
        "condition": Graph(Condition(rollout), condition_inputs, names, {}),
        "step": Graph(Step(rollout), step_inputs, ("latents_next",), {name: {0: "b"} for name in step_inputs}),
        "decode": Graph(Decode(autoencoder), {"latents": latents[:, :3]}, ("frames",), {"latents": {0: "b", 1: "f"}}),
    }


def export_bundle(
    folder: Path,
    autoencoder: FrameAutoencoder,
    rollout: RolloutModel,
    contract: Contract,
    statistics: StateStatistics,
    *,
    extra_files: Mapping[str, bytes],
) -> None:
    """Write the whole bundle into `folder`, which is emptied first. Both models are rounded to float16."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for model in (autoencoder, rollout):
        model.eval()
        round_to_half(model)
    save_weights(folder / WEIGHTS, autoencoder, rollout)
    weights = StoredWeights.read(folder / WEIGHTS)
    for name, graph in graphs_of(autoencoder, rollout).items():
        proto = export_graph(graph)
        weights.share(proto)
        (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())
    write_contract(folder, contract, statistics, GRAPH_FILES)
    (folder / MODEL_FILE).write_text(config_to_json(ModelConfig(rollout.config, autoencoder.config)), encoding="utf-8")
    for file_name, content in extra_files.items():
        (folder / file_name).write_bytes(content)
    write_manifest(folder)


def save_weights(path: Path, autoencoder: FrameAutoencoder, rollout: RolloutModel) -> None:
    """Store both models' tensors as float16 under `autoencoder.` and `rollout.`."""
    tensors = {f"autoencoder.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
    tensors |= {f"rollout.{name}": tensor for name, tensor in rollout.state_dict().items()}
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, path, metadata={"format": "foreframe-weights/1"})


def export_graph(graph: Graph) -> onnx.ModelProto:
    """Export one module with torch's dynamo exporter, weights still inside."""
    dims = {axis: torch.export.Dim(axis, min=1, max=64) for axes in graph.dynamic.values() for axis in axes.values()}
    shapes = {name: {i: dims[axis] for i, axis in graph.dynamic.get(name, {}).items()} for name in graph.inputs}
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.module,
            kwargs=dict(graph.inputs),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    proto = cast("torch.onnx.ONNXProgram", program).model_proto  # None only without dynamo
    _strip_metadata(proto)
    return proto


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where each tensor's bytes lie in the safetensors file, and what they are."""

    offsets: Mapping[str, tuple[int, int]]
    by_content: Mapping[tuple[tuple[int, ...], bytes], str]

    @classmethod
    def read(cls, path: Path) -> "StoredWeights":
        """Read the header and bytes of a float16 safetensors file."""
        content = path.read_bytes()
        (header_length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + header_length])
        header.pop("__metadata__", None)
        start = 8 + header_length
        offsets, by_content = {}, {}
        for name, item in header.items():
            low, high = (start + offset for offset in item["data_offsets"])
            offsets[name] = (low, high)
            by_content[tuple(item["shape"]), content[low:high]] = name
        return cls(offsets, by_content)

    def share(self, proto: onnx.ModelProto) -> None:
        """Point every large float initializer whose shape and bytes are stored at the file, behind a cast.

        Matching by content, not by name, cannot bind the wrong tensor. The exporter folds a linear layer's
        transpose into its weight, so a matrix may also match transposed and is turned back in the graph.
        """
        initializers, nodes = [], []
        for initializer in proto.graph.initializer:
            found = self._find(initializer)
            if found is None:
                initializers.append(initializer)
                continue
            name, is_transposed = found
            stored, added = self._replace(initializer, name, is_transposed=is_transposed)
            initializers.append(stored)
            nodes.extend(added)
        nodes.extend(proto.graph.node)
        graph = helper.make_graph(nodes, proto.graph.name, proto.graph.input, proto.graph.output, initializers)
        proto.graph.CopyFrom(graph)

    def _find(self, initializer: onnx.TensorProto) -> tuple[str, bool] | None:
        """Return the stored tensor's name and whether it lies transposed."""
        if initializer.data_type != TensorProto.FLOAT:
            return None
        values = numpy_helper.to_array(initializer)
        halves = values.astype(np.float16)
        if values.nbytes < MIN_EXTERNAL_BYTES or not np.array_equal(halves.astype(np.float32), values):
            return None
        if name := self.by_content.get((halves.shape, halves.tobytes())):
            return name, False
        name = self.by_content.get((halves.T.shape, halves.T.tobytes()))
        return None if name is None else (name, True)

    def _replace(
        self, initializer: onnx.TensorProto, name: str, *, is_transposed: bool
    ) -> tuple[onnx.TensorProto, list[onnx.NodeProto]]:
        low, high = self.offsets[name]
        target, half = initializer.name, f"{initializer.name}.half"
        dims = reversed(initializer.dims) if is_transposed else initializer.dims
        tensor = TensorProto(name=half, data_type=TensorProto.FLOAT16, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", low), ("length", high - low)):
            tensor.external_data.add(key=key, value=str(value))
        if not is_transposed:
            return tensor, [helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT)]
        turned = f"{target}.turned"
        return tensor, [
            helper.make_node("Transpose", [half], [turned]),
            helper.make_node("Cast", [turned], [target], to=TensorProto.FLOAT),
        ]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations, and its news that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces, which name files of the machine that exported."""
    for item in _all_items(proto.graph):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for function in proto.functions:
        function.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")


def _all_items(
    graph: onnx.GraphProto,
) -> Iterator[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto]:
    yield graph
    yield from graph.node
    yield from graph.value_info
    yield from graph.input
    yield from graph.output
    yield from graph.initializer
