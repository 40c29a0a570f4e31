"""What a contract says of the tensors of each graph of a rollout model. Knows no runtime and no architecture."""

from collections.abc import Mapping
from dataclasses import dataclass

from foreframe_engines.bundle import GraphName
from foreframe_engines.errors import BundleError
from foreframe_engines.runtime.session import DescribedSession, Session, TensorSpec, require_tensors
from foreframe_engines.solvers import Solver, num_slots
from foreframe_engines.types import Contract

_STEP_INPUTS = ("latents", "time", "next_time", "coefficients", "guidance")
_OPTIONAL_INPUTS = ("context_latents",)
"""What a condition graph may leave out: most architectures need the states alone."""


def require_tables(sessions: Mapping[GraphName, Session]) -> None:
    """Find every table that a step reads among what the condition graph makes, and one output where one is due.

    Raises BundleError naming the graph and the tensor.
    """
    for graph, session in sessions.items():
        if graph != "condition" and len(session.output_names) != 1:
            raise BundleError(f"the {graph} graph has more than one output")
        if not graph.startswith("step"):
            continue
        tables = [name for name in session.input_names if name not in _STEP_INPUTS]
        if unknown := [name for name in tables if name not in sessions["condition"].output_names]:
            raise BundleError(f"the {graph} graph's input {unknown[0]!r} is not an output of the condition graph")


def require_graph(graph: GraphName, session: DescribedSession, contract: Contract) -> None:
    """Compare a graph's inputs, and its sole output, with what the contract makes of them. Raises BundleError."""
    expected = _expected_tensors(graph, contract)
    needed = (spec for spec in expected.inputs if spec.name in session.input_names or spec.name not in _OPTIONAL_INPUTS)
    require_tensors(f"the {graph} graph's input", needed, session.inputs)
    output = expected.output
    if output is not None and not output.fits(session.outputs[0]):
        raise BundleError(f"the {graph} graph's output is not {output.dtype} {list(output.shape)}")


@dataclass(frozen=True, slots=True)
class _GraphTensors:
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec | None


def _expected_tensors(graph: GraphName, contract: Contract) -> _GraphTensors:
    match graph:
        case "encode":
            context = _frames(contract, 1, contract.context_frames)
            return _GraphTensors((context,), _latents(contract, "latents", 1, contract.context_latents))
        case "condition":
            states = TensorSpec("states", "float32", (1, contract.num_frames, contract.state.dim))
            context = _latents(contract, "context_latents", 1, contract.context_latents)
            return _GraphTensors((states, context), None)
        case "step":
            return _step_tensors(contract)
        case "step_guided":
            plain = _step_tensors(contract)
            return _GraphTensors((*plain.inputs, TensorSpec("guidance", "float32", (None,))), plain.output)
        case "decode":
            return _decode_tensors(contract, contract.num_frames)
        case "decode_tail":
            return _decode_tensors(contract, contract.frames_per_latent)


def _step_tensors(contract: Contract) -> _GraphTensors:
    time = TensorSpec("time", "float32", (None, contract.num_latents))
    if contract.sampler.solver is Solver.EULER:
        latents = _latents(contract, "latents", None, contract.num_latents)
        return _GraphTensors((latents, time, TensorSpec("next_time", "float32", time.shape)), latents)
    slots = (None, num_slots(contract.sampler.solver), contract.num_latents, *contract.latent_shape)
    state = TensorSpec("latents", "float32", slots)
    return _GraphTensors((state, time, TensorSpec("coefficients", "float32", (None, 2, 5))), state)


def _decode_tensors(contract: Contract, num_frames: int) -> _GraphTensors:
    """Decode one latent at a time where each is a frame, else all of them as one clip."""
    is_clip = contract.frames_per_latent > 1
    latents = _latents(contract, "latents", None, contract.num_latents if is_clip else None)
    return _GraphTensors((latents,), _frames(contract, None, num_frames if is_clip else None))


def _frames(contract: Contract, batch: int | None, length: int | None) -> TensorSpec:
    return TensorSpec("frames", "uint8", (batch, length, contract.camera.height, contract.camera.width, 3))


def _latents(contract: Contract, name: str, batch: int | None, length: int | None) -> TensorSpec:
    return TensorSpec(name, "float32", (batch, length, *contract.latent_shape))
