"""What ONNX Runtime gains over torch's eager mode: one solver step of a batch, by turns in one run, one thread each."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foreframe_engines.runtime.ort import OrtSession
from foreframe_models.graph import Graph, export_graph
from foreframe_models.rollout import RolloutModel
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.savings import ALL_SAVINGS, NO_SAVINGS, Savings
from foreframe_models.studies.savings import Saved, compare


def measure_onnxruntime(model: RolloutModel, *, batch: int, rounds: int) -> list[Saved]:
    """Compare a step on ONNX Runtime with torch running the same graph, and with torch without the exact savings."""
    graph = _step_graph(model, ALL_SAVINGS)
    inputs = _draw_inputs(graph, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        path.write_bytes(export_graph(graph).SerializeToString())
        session = OrtSession(path, num_threads=1)
        run = _on_onnxruntime(session, inputs)
        found = [
            compare("onnxruntime, the same graph", _on_torch(graph, inputs), run, rounds),
            compare("onnxruntime, against plain torch", _on_torch(_step_graph(model, NO_SAVINGS), inputs), run, rounds),
        ]
        session.close()
    return found


def _step_graph(model: RolloutModel, savings: Savings) -> Graph:
    return flow_graphs_of(model, savings=savings)["step"]


def _draw_inputs(graph: Graph, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (batch, *example.shape[1:]) for name, example in graph.inputs.items()}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return inputs | {"time": torch.full(shapes["time"], 0.8), "next_time": torch.full(shapes["next_time"], 0.6)}


def _on_torch(graph: Graph, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    module = graph.module.eval()

    @torch.inference_mode()
    def run() -> Tensor:
        return module(*(inputs[name] for name in graph.inputs))

    return run


def _on_onnxruntime(session: OrtSession, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    arrays = {name: np.asarray(inputs[name].numpy()) for name in session.input_names}

    def run() -> Tensor:
        (output,) = session.run(arrays).values()
        return torch.from_numpy(output)

    return run
