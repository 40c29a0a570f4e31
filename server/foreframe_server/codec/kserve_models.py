"""The models of the tensor door: which tensors and parameters each takes and gives, and what they are natively."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from foreframe_engines import Contract
from foreframe_server.codec.kserve import Datatype
from foreframe_server.scores import TermKind

PREDICTION, LIKELIHOOD, SCORE = "world_model", "world_model_likelihood", "world_model_score"
TIMEOUT, PRIORITY, SEED, METRIC = "timeout", "priority", "seed", "metric"
GOALS: Mapping[TermKind, str] = {TermKind.GOAL_IMAGE: "goal_image", TermKind.GOAL_STATE: "goal_state"}
WEIGHTS: Mapping[TermKind, str] = {kind: f"weight_{kind.value}" for kind in TermKind}
PAST = ("past_frames", "past_states")
FRAMES = "frames"
SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = "sequence_id", "sequence_start", "sequence_end"
_ANY = -1

Path = tuple[str, ...]
"""Where a value stands in a native request; empty for one that does not stand there as it is."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: its axes after the batch, -1 for a side that requests choose, and its place in a native request."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    path: Path
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output: its axes after the batch, -1 for a side that answers differ in."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TensorModel:
    """One model. `parameters` leads to their places in a native request, which also holds the `constants`."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    parameters: Mapping[str, Path]
    max_batch_size: int
    constants: Mapping[Path, object] = field(default_factory=dict)

    @property
    def datatypes(self) -> Mapping[str, Datatype]:
        """The datatype of each input."""
        return {spec.name: spec.datatype for spec in self.inputs}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output."""
        return tuple(spec.name for spec in self.outputs)


_DRAWS: Mapping[str, Path] = {
    "num_members": ("ensemble", "size"),
    "noise": ("ensemble", "noise"),
    "strategy": ("sampling", "strategy"),
    "steps": ("sampling", "steps"),
    "guidance": ("sampling", "guidance"),
    SEED: ("sampling", "seed"),
}
_HANDLING: Mapping[str, Path] = {TIMEOUT: ("deadline_ms",), PRIORITY: ("priority",)}
_DEADLINE_MET = OutputSpec("deadline_met", Datatype.BOOL, (1,))
_NUM_MEMBERS = OutputSpec("n_members", Datatype.INT32, (1,))


def prediction_model(contract: Contract) -> TensorModel:
    """Describe what predicts frames. Rows of `members` past a row's `n_members` are zeros."""
    height, width = contract.camera.height, contract.camera.width
    return TensorModel(
        name=PREDICTION,
        inputs=(
            *_past_inputs(contract, contract.context_frames),
            InputSpec("future_states", Datatype.FP32, (_ANY, contract.state.dim), ("future", "values")),
        ),
        outputs=(
            OutputSpec("mean", Datatype.UINT8, (_ANY, height, width, 3)),
            OutputSpec("variance", Datatype.FP32, (_ANY, height, width)),
            OutputSpec("members", Datatype.UINT8, (_ANY, _ANY, height, width, 3)),
            _NUM_MEMBERS,
            _DEADLINE_MET,
        ),
        parameters={
            **_DRAWS,
            **_HANDLING,
            "tolerance": ("ensemble", "tolerance"),
            "on_deadline": ("on_deadline",),
            "cache": ("cache",),
            FRAMES: (FRAMES,),
            **dict.fromkeys((SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END), ()),
        },
        max_batch_size=contract.buckets[-1],
    )


def likelihood_model(contract: Contract) -> TensorModel:
    """Describe what counts bits. Raises ValueError for a contract without tokens."""
    if contract.tokens is None:
        raise ValueError("likelihoods need tokens")
    frame = (contract.camera.height, contract.camera.width, 3)
    ids, dim = contract.tokens.tokens, contract.state.dim
    return TensorModel(
        name=LIKELIHOOD,
        inputs=(
            *_past_inputs(contract, _ANY),
            InputSpec("target_frames", Datatype.UINT8, (_ANY, *frame), ("target", "frames"), is_optional=True),
            InputSpec("target_ids", Datatype.INT64, (_ANY, ids), ("target", "ids"), is_optional=True),
            InputSpec("target_states", Datatype.FP32, (_ANY, dim), ("target", "state", "values")),
        ),
        outputs=(
            OutputSpec("nats_total", Datatype.FP64, (1,)),
            OutputSpec("nats_per_token", Datatype.FP64, (1,)),
            OutputSpec("bits_per_frame", Datatype.FP64, (_ANY,)),
            OutputSpec("map", Datatype.FP32, (_ANY, *contract.tokens.grid)),
            _DEADLINE_MET,
        ),
        parameters={**_HANDLING, "scenario": ("scenario",)},
        max_batch_size=contract.buckets[-1],
    )


def score_model(contract: Contract) -> TensorModel:
    """Describe what ranks candidates: by the goals that are given, and by each kind that has a weight."""
    frame, dim = (contract.camera.height, contract.camera.width, 3), contract.state.dim
    return TensorModel(
        name=SCORE,
        inputs=(
            *_past_inputs(contract, _ANY),
            InputSpec("candidate_states", Datatype.FP32, (_ANY, _ANY, dim), ("candidates", "values")),
            InputSpec(GOALS[TermKind.GOAL_IMAGE], Datatype.UINT8, frame, (), is_optional=True),
            InputSpec(GOALS[TermKind.GOAL_STATE], Datatype.FP32, (dim,), (), is_optional=True),
        ),
        outputs=(
            OutputSpec("costs", Datatype.FP64, (_ANY,)),
            OutputSpec("ranks", Datatype.INT32, (_ANY,)),
            OutputSpec("best_index", Datatype.INT32, (1,)),
            _NUM_MEMBERS,
            _DEADLINE_MET,
        ),
        parameters={
            **_DRAWS,
            **_HANDLING,
            "seed_policy": ("seed_policy",),
            METRIC: (),
            **dict.fromkeys(WEIGHTS.values(), ()),
        },
        max_batch_size=contract.buckets[-1],
        constants={("return", "top_n"): 0},
    )


def _past_inputs(contract: Contract, num_frames: int) -> tuple[InputSpec, InputSpec]:
    camera, dim = contract.camera, contract.state.dim
    frames, states = PAST
    return (
        InputSpec(
            frames,
            Datatype.UINT8,
            (num_frames, camera.height, camera.width, 3),
            ("observation", "cameras", camera.name, "frames"),
        ),
        InputSpec(states, Datatype.FP32, (num_frames, dim), ("observation", "state", "values")),
    )
