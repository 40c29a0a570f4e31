"""A likelihood engine over the four graphs of a bundle: tokenize, detokenize, frame_step, top_k. Knows no architecture.

Windows and grids are cut into forwards of a few fixed sizes; lanes run forwards side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from foreframe_engines.bundle import LIKELIHOOD_GRAPHS, Bundle, LikelihoodGraphName
from foreframe_engines.errors import BundleError, ModelFault
from foreframe_engines.lanes import CPU_BUCKETS, Lanes
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.runtime.session import Session, TensorSpec, require_tensors
from foreframe_engines.types import Contract, GridScore, TokenRow, TokenSpec
from foreframe_engines.windows import split_frames, split_grids


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """What one grid leaves behind: l layers of keys and of values, each d wide at every token."""

    layers: int
    width: int


class GraphLikelihoodEngine:
    """Runs the four graphs of a likelihood model.

    A forward takes one of the sizes in `buckets` (by default the contract's), filled up with rows of zeros; its rows
    have read equally many grids. `determinism` is what the sessions can promise: `bitwise`, `bucketed` or `tolerance`.
    """

    def __init__(
        self,
        contract: Contract,
        sessions: Mapping[LikelihoodGraphName, Session],
        memory: MemoryShape,
        *,
        determinism: str = "tolerance",
        buckets: tuple[int, ...] | None = None,
        num_lanes: int = 1,
    ) -> None:
        """Take over the sessions. Raises BundleError when the contract has no tokens."""
        self.contract = contract
        self.tokens = _tokens_of(contract)
        self.determinism = determinism
        self._sessions = dict(sessions)
        self._memory = memory
        self._lanes = Lanes(num_lanes, buckets or contract.buckets)

    @property
    def sessions(self) -> Mapping[LikelihoodGraphName, Session]:
        """What runs each graph."""
        return self._sessions

    @property
    def memory(self) -> MemoryShape:
        """What one grid leaves behind."""
        return self._memory

    def tokenize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Int64[np.ndarray, "g s"]:
        """Turn whole windows of frames into grids of ids. Raises ShapeMismatch for a part of a window."""
        return np.concatenate(self._lanes.run(list(split_frames(frames, self.tokens)), self._tokenize_forward))

    def detokenize(self, ids: Int64[np.ndarray, "g s"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Turn whole windows of grids back into frames. Raises ShapeMismatch for a part of a window."""
        return np.concatenate(self._lanes.run(list(split_grids(ids, self.tokens)), self._detokenize_forward))

    def read(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        """Read one grid of each row and score the next. Raises ModelFault when a log probability is not finite."""
        return self._lanes.run(rows, self._read_forward, key=lambda row: (row.history.num_grids, row.top_k))

    def close(self) -> None:
        """Let running forwards end, then free the sessions."""
        self._lanes.close()
        for session in self._sessions.values():
            session.close()

    def _tokenize_forward(self, windows: Sequence[UInt8[np.ndarray, "f h w 3"]]) -> Int64[np.ndarray, "b g s"]:
        frames = self._lanes.pad(np.stack(windows))
        return self._sessions["tokenize"].run({"frames": frames})["ids"][: len(windows)]

    def _detokenize_forward(self, windows: Sequence[Int64[np.ndarray, "g s"]]) -> UInt8[np.ndarray, "b f h w 3"]:
        ids = self._lanes.pad(np.stack(windows))
        return self._sessions["detokenize"].run({"ids": ids})["frames"][: len(windows)]

    def _read_forward(self, rows: Sequence[TokenRow]) -> list[GridScore]:
        step = self._sessions["frame_step"].run(self._step_inputs(rows))
        _require_finite(step["log_probability"], step["greedy_log_probability"])
        top = self._top_k(rows, step)
        return [
            GridScore(
                step["greedy_log_probability" if row.target is None else "log_probability"][place],
                step["greedy"][place],
                row.history.extended(_segment(step["keys_next"], place), _segment(step["values_next"], place)),
                None if top is None else top.log_mass[place],
                None if top is None else top.is_in_top[place],
            )
            for place, row in enumerate(rows)
        ]

    def _step_inputs(self, rows: Sequence[TokenRow]) -> dict[str, np.ndarray]:
        # A target must be there; where none is asked for, its score is left unread.
        targets = [row.ids if row.target is None else row.target for row in rows]
        return {
            "ids": self._lanes.pad(np.stack([row.ids for row in rows])),
            "states": self._lanes.pad(np.stack([row.states for row in rows])),
            "target": self._lanes.pad(np.stack(targets)),
            "position": self._lanes.pad(np.array([row.history.num_grids for row in rows], np.int64)),
            "keys": self._remember([row.history.keys for row in rows], rows[0].history.num_grids),
            "values": self._remember([row.history.values for row in rows], rows[0].history.num_grids),
        }

    def _remember(
        self, histories: Sequence[Sequence[Float32[np.ndarray, "l 1 t s d"]]], num_grids: int
    ) -> Float32[np.ndarray, "l b p s d"]:
        """Lay each row's segments behind an empty slot; rows that fill up the forward stay zero."""
        size = self._lanes.size(len(histories))
        shape = (self._memory.layers, size, 1 + num_grids, self.tokens.tokens, self._memory.width)
        memory = np.zeros(shape, np.float32)
        for place, segments in enumerate(histories):
            if segments:
                np.concatenate(segments, axis=2, out=memory[:, place : place + 1, 1:])
        return memory

    def _top_k(self, rows: Sequence[TokenRow], step: Mapping[str, np.ndarray]) -> "_Top | None":
        """Ask about the k likeliest ids, the same k for every row of a forward."""
        top_k = rows[0].top_k
        if top_k is None:
            return None
        scored = step["greedy"].copy()
        for place, row in enumerate(rows):
            if row.target is not None:
                scored[place] = row.target
        inputs = {"hidden": step["hidden"], "target": scored, "k": np.array([top_k], np.int64)}
        top = self._sessions["top_k"].run(inputs)
        _require_finite(top["log_mass"])
        return _Top(top["log_mass"], top["is_in_top"])


def open_likelihood_engine(bundle: Bundle, *, num_threads: int) -> GraphLikelihoodEngine:
    """Run a bundle on ONNX Runtime's CPU provider: fp32, identical bytes whatever shares a read.

    Raises BundleError when the bundle has no likelihood model or a graph is not what the contract says,
    RuntimeUnavailable without ONNX Runtime.
    """
    tokens = _tokens_of(bundle.contract)
    sessions = {graph: OrtSession(bundle.graph(graph), num_threads=num_threads) for graph in LIKELIHOOD_GRAPHS}
    memory = _memory_shape(sessions["frame_step"], tokens)
    for graph, expected in _expected_tensors(bundle.contract, tokens, memory).items():
        require_tensors(f"the {graph} graph's input", expected.inputs, sessions[graph].inputs)
        require_tensors(f"the {graph} graph's output", expected.outputs, sessions[graph].outputs)
    return GraphLikelihoodEngine(
        bundle.contract, sessions, memory, determinism="bitwise", buckets=CPU_BUCKETS, num_lanes=num_threads
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Top:
    log_mass: Float32[np.ndarray, "b s"]
    is_in_top: Bool[np.ndarray, "b s"]


@dataclass(frozen=True, slots=True)
class _GraphTensors:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _tokens_of(contract: Contract) -> TokenSpec:
    if contract.tokens is None:
        raise BundleError("contract.json: tokens: the bundle has no likelihood model")
    return contract.tokens


def _memory_shape(frame_step: OrtSession, tokens: TokenSpec) -> MemoryShape:
    """Read from the graph what the contract does not say. Raises BundleError when it leaves it open."""
    shape = next((spec.shape for spec in frame_step.inputs if spec.name == "keys"), ())
    match shape:
        case (int(layers), _, _, _, int(width)):
            return MemoryShape(layers, width)
        case _:
            raise BundleError(f"the frame_step graph's input 'keys' is not l b p {tokens.tokens} d with fixed l and d")


def _expected_tensors(
    contract: Contract, tokens: TokenSpec, memory: MemoryShape
) -> dict[LikelihoodGraphName, _GraphTensors]:
    camera, s = contract.camera, tokens.tokens
    frames = TensorSpec("frames", "uint8", (None, tokens.window_frames, camera.height, camera.width, 3))
    windows = TensorSpec("ids", "int64", (None, tokens.window_grids, s))

    def ids(name: str) -> TensorSpec:
        return TensorSpec(name, "int64", (None, s))

    def numbers(name: str, *axes: int) -> TensorSpec:
        return TensorSpec(name, "float32", (None, *axes))

    def slots(name: str, length: int | None) -> TensorSpec:
        return TensorSpec(name, "float32", (memory.layers, None, length, s, memory.width))

    hidden = numbers("hidden", s, memory.width)
    log_probabilities = numbers("log_probability", s), numbers("greedy_log_probability", s)
    step_inputs = (
        *(ids("ids"), numbers("states", 2, contract.state.dim), ids("target")),
        *(TensorSpec("position", "int64", (None,)), slots("keys", None), slots("values", None)),
    )
    step_outputs = (*log_probabilities, ids("greedy"), hidden, slots("keys_next", 1), slots("values_next", 1))
    top_outputs = numbers("log_mass", s), TensorSpec("is_in_top", "bool", (None, s))
    return {
        "tokenize": _GraphTensors((frames,), (windows,)),
        "detokenize": _GraphTensors((windows,), (frames,)),
        "frame_step": _GraphTensors(step_inputs, step_outputs),
        "top_k": _GraphTensors((hidden, ids("target"), TensorSpec("k", "int64", (1,))), top_outputs),
    }


def _segment(memory: Float32[np.ndarray, "l b 1 s d"], place: int) -> Float32[np.ndarray, "l 1 1 s d"]:
    """Cut out one row's memory; a copy where neighbours would otherwise stay alive with it."""
    return np.ascontiguousarray(memory[:, place : place + 1])


def _require_finite(*log_probabilities: Float32[np.ndarray, "b s"]) -> None:
    if not all(np.isfinite(values).all() for values in log_probabilities):
        raise ModelFault("the log probabilities are not finite")
