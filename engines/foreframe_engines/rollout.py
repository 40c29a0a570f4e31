"""A rollout engine over the four graphs of a bundle: encode, condition, step, decode. Knows no architecture.

Rows of a step, and frames of a decode, are cut into forwards of a few fixed sizes; lanes run forwards side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.bundle import GRAPHS, Bundle, GraphName
from foreframe_engines.errors import BundleError, ModelFault
from foreframe_engines.lanes import CPU_BUCKETS, Lanes
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.session import Session, TensorSpec, require_tensors
from foreframe_engines.types import Conditioning, Contract, StepRow

_STEP_INPUTS = ("latents", "time", "next_time")
_LANE_GRAPHS = ("step", "decode")
_OPTIONAL_INPUTS = ("context_latents",)
"""What a condition graph may leave out: most architectures need the states alone."""


class GraphRolloutEngine:
    """Runs the four graphs of a rollout model.

    A forward takes one of the sizes in `buckets` (by default the contract's), filled up with rows of zeros.
    `determinism` is what the sessions can promise: `bitwise`, `bucketed` or `tolerance`.
    """

    def __init__(
        self,
        contract: Contract,
        sessions: Mapping[GraphName, Session],
        *,
        determinism: str = "tolerance",
        buckets: tuple[int, ...] | None = None,
        num_lanes: int = 1,
    ) -> None:
        """Take over the sessions. Raises BundleError when the contract or the graphs do not fit together."""
        if contract.frames_per_latent != 1:
            raise BundleError(
                f"contract.json: frames_per_latent: {contract.frames_per_latent}; this engine needs one latent a frame"
            )
        self._tables = _step_tables(sessions)
        self.contract = contract
        self.determinism = determinism
        self._sessions = dict(sessions)
        self._lanes = Lanes(num_lanes, buckets or contract.buckets)

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        return _sole_output(self._sessions["encode"], {"frames": context[None]})[0]

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units) into the step's tables, each `1 ...`; missing future rows repeat the last."""
        num_rows = self.contract.context_frames + self.contract.horizon
        complete = states[np.minimum(np.arange(num_rows), len(states) - 1)]
        inputs = {"states": complete[None], "context_latents": context_latents[None]}
        session = self._sessions["condition"]
        tables = session.run({name: inputs[name] for name in session.input_names})
        return Conditioning(context_latents, tables)

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return (self.contract.horizon, *self.contract.latent_shape)

    def initial_latents(
        self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]
    ) -> Float32[np.ndarray, "n c y x"]:
        """Put a member's noise for the future behind the clean context latents."""
        return np.concatenate([conditioning.context_latents, noise])

    def step(self, rows: Sequence[StepRow]) -> list[Float32[np.ndarray, "n c y x"]]:
        """Advance each row by one solver step. Raises ModelFault when the graph fails."""
        return self._lanes.run(rows, self._step_forward)

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode frames 1..H of each member, each frame by itself: its bytes do not depend on which others are wanted.

        Raises ModelFault when latents are not finite.
        """
        if not all(np.isfinite(member).all() for member in latents):
            raise ModelFault("the latents are not finite")
        wanted = [self.contract.context_frames + index - 1 for index in frame_indices]
        frames = self._lanes.run([member[index] for member in latents for index in wanted], self._decode_forward)
        return np.stack(frames).reshape(len(latents), len(wanted), *frames[0].shape)

    def close(self) -> None:
        """Let running forwards end, then free the sessions."""
        self._lanes.close()
        for session in self._sessions.values():
            session.close()

    def _step_forward(self, rows: Sequence[StepRow]) -> Float32[np.ndarray, "b n c y x"]:
        inputs = {
            "latents": np.stack([row.latents for row in rows]),
            "time": np.stack([self._times(row, row.time) for row in rows]),
            "next_time": np.stack([self._times(row, row.next_time) for row in rows]),
        }
        for name in self._tables:
            inputs[name] = np.concatenate([row.conditioning.tables[name] for row in rows])
        return self._padded_output("step", inputs, len(rows))

    def _times(self, row: StepRow, time: float) -> Float32[np.ndarray, " n"]:
        """Give every latent frame its time; context frames are clean and stay at 0."""
        times = np.full(len(row.latents), time, np.float32)
        times[: self.contract.context_frames] = 0
        return times

    def _decode_forward(self, latents: Sequence[Float32[np.ndarray, "c y x"]]) -> UInt8[np.ndarray, "b h w 3"]:
        return self._padded_output("decode", {"latents": np.stack(latents)[:, None]}, len(latents))[:, 0]

    def _padded_output(self, graph: GraphName, inputs: Mapping[str, np.ndarray], num_rows: int) -> np.ndarray:
        padded = {name: self._lanes.pad(values) for name, values in inputs.items()}
        return _sole_output(self._sessions[graph], padded)[:num_rows]


def open_rollout_engine(bundle: Bundle, *, num_threads: int) -> GraphRolloutEngine:
    """Run a bundle on ONNX Runtime's CPU provider: fp32, identical bytes whatever shares a step.

    Raises BundleError when a graph is not what the contract says, RuntimeUnavailable without ONNX Runtime.
    """
    # Forwards that lanes run side by side have a thread each: sharing theirs took 10 to 20 % longer on two cores.
    threads = {graph: 1 if graph in _LANE_GRAPHS else num_threads for graph in GRAPHS}
    sessions = {graph: OrtSession(bundle.graph_path(graph), num_threads=threads[graph]) for graph in GRAPHS}
    for graph, session in sessions.items():
        _check_tensors(graph, session, bundle.contract)
    return GraphRolloutEngine(
        bundle.contract, sessions, determinism="bitwise", buckets=CPU_BUCKETS, num_lanes=num_threads
    )


def _step_tables(sessions: Mapping[GraphName, Session]) -> tuple[str, ...]:
    """List the tables the step reads; each must be one that the condition graph makes."""
    tables = tuple(name for name in sessions["step"].input_names if name not in _STEP_INPUTS)
    if unknown := [name for name in tables if name not in sessions["condition"].output_names]:
        raise BundleError(f"the step graph's input {unknown[0]!r} is not an output of the condition graph")
    for graph in ("encode", "step", "decode"):
        if len(sessions[graph].output_names) != 1:
            raise BundleError(f"the {graph} graph has more than one output")
    return tables


def _check_tensors(graph: GraphName, session: OrtSession, contract: Contract) -> None:
    """Compare a graph's inputs, and its sole output, with what the contract makes of them."""
    expected = _expected_tensors(contract)[graph]
    needed = (spec for spec in expected.inputs if spec.name in session.input_names or spec.name not in _OPTIONAL_INPUTS)
    require_tensors(f"the {graph} graph's input", needed, session.inputs)
    output = expected.output
    if output is not None and not output.fits(session.outputs[0]):
        raise BundleError(f"the {graph} graph's output is not {output.dtype} {list(output.shape)}")


@dataclass(frozen=True, slots=True)
class _GraphTensors:
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec | None


def _expected_tensors(contract: Contract) -> dict[GraphName, _GraphTensors]:
    camera, context = contract.camera, contract.context_frames
    num_frames = context + contract.horizon

    def frames(batch: int | None, length: int | None) -> TensorSpec:
        return TensorSpec("frames", "uint8", (batch, length, camera.height, camera.width, 3))

    def latents(name: str, batch: int | None, length: int | None) -> TensorSpec:
        return TensorSpec(name, "float32", (batch, length, *contract.latent_shape))

    row = latents("latents", None, num_frames)
    times = tuple(TensorSpec(name, "float32", (None, num_frames)) for name in ("time", "next_time"))
    states = TensorSpec("states", "float32", (1, num_frames, contract.state.dim))
    return {
        "encode": _GraphTensors((frames(1, context),), latents("latents", 1, context)),
        "condition": _GraphTensors((states, latents("context_latents", 1, context)), None),
        "step": _GraphTensors((row, *times), row),
        "decode": _GraphTensors((latents("latents", None, None),), frames(None, None)),
    }


def _sole_output(session: Session, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    (output,) = session.run(inputs).values()
    return output
