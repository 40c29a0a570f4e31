"""A rollout engine over the four graphs of a bundle: encode, condition, step, decode. Knows no architecture.

Rows of a step, and frames of a decode, are cut into forwards of a few fixed sizes; lanes run forwards side by side.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines.bundle import Bundle, GraphName, rollout_graph_names
from foreframe_engines.errors import ModelFault, RuntimeUnavailable
from foreframe_engines.graph_tensors import require_graph, require_tables
from foreframe_engines.lanes import CPU_BUCKETS, Lanes
from foreframe_engines.runtime.ort import CPU_PROVIDER, OrtSession
from foreframe_engines.runtime.resident import DeviceRow, ResidentSession, Row
from foreframe_engines.runtime.session import Session
from foreframe_engines.solvers import coefficients, initial_state, num_slots
from foreframe_engines.types import Conditioning, Contract, Latents, StepRow, StepState

_LANE_GRAPHS = ("step", "step_guided", "decode", "decode_tail")
_CLEAN_SLOT = 2
"""Where UniPC keeps the network's last answer, which is of clean latents."""


class GraphRolloutEngine:
    """Runs the four graphs of a rollout model.

    A forward takes one of the sizes in `buckets` (by default the contract's), filled up with rows of zeros.
    `determinism` is what the sessions can promise: `bitwise`, `bucketed` or `tolerance`.
    `is_resident`: between steps, and until they are decoded, states stay on the device, and what `step` returns are
    rows of a batch there that serve as arrays; by default where every session can do so and one is not on the CPU.
    """

    def __init__(
        self,
        contract: Contract,
        sessions: Mapping[GraphName, Session],
        *,
        determinism: str = "tolerance",
        buckets: tuple[int, ...] | None = None,
        num_lanes: int = 1,
        is_resident: bool | None = None,
    ) -> None:
        """Take over the sessions.

        Raises BundleError when the contract or the graphs do not fit together, RuntimeUnavailable when states are to
        stay where a session cannot leave them.
        """
        require_tables(sessions)
        self.contract = contract
        self.determinism = determinism
        self.num_lanes = num_lanes
        self._sessions = dict(sessions)
        self._lanes = Lanes(num_lanes, buckets or contract.buckets)
        self._resident = _find_resident(sessions, is_wanted=is_resident)

    @property
    def sessions(self) -> Mapping[GraphName, Session]:
        """What runs each graph."""
        return self._sessions

    @property
    def is_resident(self) -> bool:
        """Whether states stay on the device."""
        return bool(self._resident)

    def encode(self, context: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t c y x"]:
        """Encode context frames (RGB 0..255) into clean latents."""
        return _sole_output(self._sessions["encode"], {"frames": context[None]})[0]

    def condition(
        self, context_latents: Float32[np.ndarray, "t c y x"], states: Float32[np.ndarray, "n d"]
    ) -> Conditioning:
        """Turn states (physical units) into the step's tables, each `1 ...`; missing future rows repeat the last."""
        complete = states[np.minimum(np.arange(self.contract.num_frames), len(states) - 1)]
        inputs = {"states": complete[None], "context_latents": context_latents[None]}
        session = self._sessions["condition"]
        tables = session.run({name: inputs[name] for name in session.input_names})
        return Conditioning(context_latents, tables)

    def noise_shape(self) -> tuple[int, int, int, int]:
        """Shape `f c y x` of the noise of one member's future latents."""
        return (self.contract.num_latents - self.contract.context_latents, *self.contract.latent_shape)

    def initial_latents(self, conditioning: Conditioning, noise: Float32[np.ndarray, "f c y x"]) -> StepState:
        """Put a member's noise for the future behind the clean context latents, into every slot of the solver."""
        return initial_state(conditioning.context_latents, noise, self.contract.sampler.solver)

    def step(self, rows: Sequence[StepRow]) -> list[StepState]:
        """Advance each row by one solver step; at time 0 only the latents are left. Raises ModelFault."""
        return self._lanes.run(rows, self._step_forward, key=self._is_guided)

    def denoise(self, previous: StepState, state: StepState, time: float, next_time: float) -> Latents:
        """Return where the step that led from `previous` to `state` points at time 0."""
        if self._has_one_slot:
            return euler_denoised(np.asarray(previous), np.asarray(state), time, next_time)
        return state if next_time == 0 else state[_CLEAN_SLOT]

    def decode(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], frame_indices: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode frames 1..H of each member: by themselves where a latent is a frame, else as parts of a clip.

        A frame's bytes do not depend on which others are wanted, or only by rounding where the last latent's frames
        can be decoded alone. Raises ModelFault when latents are not finite.
        """
        if not all(_is_finite(member) for member in latents):
            raise ModelFault("the latents are not finite")
        wanted = [self.contract.context_frames + index - 1 for index in frame_indices]
        if self.contract.frames_per_latent > 1:
            return self._decode_clips(latents, wanted)
        frames = self._lanes.run([member[index] for member in latents for index in wanted], self._decode_forward)
        return np.stack(frames).reshape(len(latents), len(wanted), *frames[0].shape)

    def close(self) -> None:
        """Let running forwards end, then free the sessions."""
        self._lanes.close()
        for session in self._sessions.values():
            session.close()

    @property
    def _has_one_slot(self) -> bool:
        return num_slots(self.contract.sampler.solver) == 1

    def _is_guided(self, row: StepRow) -> bool:
        """Tell whether a row needs both branches; without guidance in the model, or at 1, one is the answer."""
        return row.guidance != 1.0 and "step_guided" in self._sessions

    def _step_forward(self, rows: Sequence[StepRow]) -> list[StepState]:
        graph: GraphName = "step_guided" if self._is_guided(rows[0]) else "step"
        names = self._sessions[graph].input_names
        states = self._output_rows(graph, {name: [self._step_input(name, row) for row in rows] for name in names})
        if self._has_one_slot:
            return states
        return [state[0] if row.next_time == 0 else state for row, state in zip(rows, states, strict=True)]

    def _step_input(self, name: str, row: StepRow) -> np.ndarray:
        match name:
            case "latents":
                return row.latents
            case "time":
                return self._times(row.time)
            case "next_time":
                return self._times(row.next_time)
            case "coefficients":
                return _unipc_coefficients(row)
            case "guidance":
                return np.array(row.guidance, np.float32)
            case _:
                return row.conditioning.tables[name][0]

    def _times(self, time: float) -> Float32[np.ndarray, " n"]:
        """Give every latent frame its time; the context is clean and stays at 0."""
        times = np.full(self.contract.num_latents, time, np.float32)
        times[: self.contract.context_latents] = 0
        return times

    def _decode_clips(
        self, latents: Sequence[Float32[np.ndarray, "n c y x"]], wanted: Sequence[int]
    ) -> UInt8[np.ndarray, "k f h w 3"]:
        """Decode whole clips, or of each only the frames of its last latent where no others are wanted."""
        first_of_tail = self.contract.num_frames - self.contract.frames_per_latent
        is_tail = "decode_tail" in self._sessions and min(wanted) >= first_of_tail
        graph: GraphName = "decode_tail" if is_tail else "decode"
        clips = self._lanes.run(latents, lambda members: self._output_rows(graph, {"latents": members}))
        first = first_of_tail if is_tail else 0
        return np.stack(clips)[:, [index - first for index in wanted]]

    def _decode_forward(self, latents: Sequence[Float32[np.ndarray, "c y x"]]) -> list[UInt8[np.ndarray, "h w 3"]]:
        frames = self._output_rows("decode", {"latents": [latent[None] for latent in latents]})
        return [frame[0] for frame in frames]

    def _output_rows(self, graph: GraphName, inputs: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Run a forward on rows, filled up to its size, and return a row for each."""
        num_rows = len(next(iter(inputs.values())))
        if graph in self._resident:
            size, tables = self._lanes.size(num_rows), self._sessions["condition"].output_names
            (batch,) = self._resident[graph].run_resident(inputs, size, lasting=tables).values()
            return cast("list[np.ndarray]", batch.rows(num_rows))  # rows serve as arrays
        padded = {name: self._lanes.pad(np.stack(rows)) for name, rows in inputs.items()}
        return list(_sole_output(self._sessions[graph], padded)[:num_rows])


def open_rollout_engine(
    bundle: Bundle, *, num_threads: int, num_lanes: int | None = None, provider: str = CPU_PROVIDER
) -> GraphRolloutEngine:
    """Run a bundle on ONNX Runtime in fp32; on its CPU provider a row's bytes are the same whatever shares a step.

    num_lanes: forwards that run side by side and share the threads; by default every thread is a lane, and a GPU is
    one. Raises BundleError when a graph is not what the contract says, RuntimeUnavailable without ONNX Runtime or the
    provider.
    """
    is_cpu = provider == CPU_PROVIDER
    lanes = num_lanes or (num_threads if is_cpu else 1)
    # Forwards that lanes run side by side have a thread each: sharing theirs took 10 to 20 % longer on two cores.
    threads = {
        graph: num_threads // lanes if graph in _LANE_GRAPHS else num_threads
        for graph in rollout_graph_names(bundle.graphs)
    }
    sessions = {
        graph: OrtSession(bundle.graph(graph), num_threads=count, provider=provider) for graph, count in threads.items()
    }
    for graph, session in sessions.items():
        require_graph(graph, session, bundle.contract)
    determinism, buckets = ("bitwise", CPU_BUCKETS) if is_cpu else ("tolerance", None)
    return GraphRolloutEngine(bundle.contract, sessions, determinism=determinism, buckets=buckets, num_lanes=lanes)


def euler_denoised(previous: Latents, latents: Latents, time: float, next_time: float) -> Latents:
    """Return where an Euler step x' = x + (t' - t) v points at time 0: x' - t' v.

    After one step from time 1 that is the posterior mean.
    """
    return latents - next_time * ((latents - previous) / (next_time - time))


def _find_resident(
    sessions: Mapping[GraphName, Session], *, is_wanted: bool | None
) -> dict[GraphName, ResidentSession]:
    """Return the sessions between which states stay on the device; none where they do not."""
    of_states = {graph: session for graph, session in sessions.items() if graph in _LANE_GRAPHS}
    found = {graph: session for graph, session in of_states.items() if isinstance(session, ResidentSession)}
    is_possible = len(found) == len(of_states)
    if is_wanted and not is_possible:
        unable = min(of_states.keys() - found.keys())
        raise RuntimeUnavailable(f"the {unable} graph's session cannot leave what it gives on its device")
    is_worthwhile = any(session.device != "cpu" for session in of_states.values())
    return found if is_possible and (is_worthwhile if is_wanted is None else is_wanted) else {}


def _is_finite(member: Row) -> bool:
    return member.is_finite() if isinstance(member, DeviceRow) else bool(np.isfinite(member).all())


def _unipc_coefficients(row: StepRow) -> Float32[np.ndarray, "2 5"]:
    """Weigh a row's step in its schedule; of the times that come after it only matters whether there are any."""
    later = () if row.next_time == 0 else (0.0,)
    return coefficients((*row.earlier_times, row.time, row.next_time, *later), len(row.earlier_times))


def _sole_output(session: Session, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    (output,) = session.run(inputs).values()
    return output
