"""A scoring request's document to a `ScoreQuery` that nothing later checks again, and to how its reply is wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from foreframe_engines import Contract
from foreframe_engines.types import TokenSpec
from foreframe_server.calls import CallOptions
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import STATE_POINTER, ObservationReader, Observed, Recall, check_model
from foreframe_server.codec.documents import Document
from foreframe_server.codec.media import Media
from foreframe_server.codec.oddities import find_outliers, find_unit_doubts
from foreframe_server.codec.query import read_ensemble, read_sampling
from foreframe_server.codec.states import read_rows
from foreframe_server.codec.terms import TermReader, refusal
from foreframe_server.codec.validation import validate
from foreframe_server.errors import CapabilityMissing, NonFinite, Reason, StateDimMismatch
from foreframe_server.schemas import PictureEncoding, Scalar, Warned
from foreframe_server.score_schemas import ScoreRequest, TermRequest
from foreframe_server.scores import (
    Candidate,
    Constraint,
    GoalMetric,
    Objective,
    ScoreQuery,
    TermKind,
)
from foreframe_server.state_layout import StateLayout

_VALUES = "/candidates/values"
_MAX_REPORTED = 8


@dataclass(frozen=True, slots=True)
class AskedScores:
    """One decoded request, and how its call and its reply are wanted."""

    query: ScoreQuery
    options: CallOptions
    media: Media
    encoding: PictureEncoding
    client_time: float | None
    metadata: Mapping[str, Scalar] | None
    warnings: tuple[Warned, ...]


@dataclass(frozen=True, slots=True)
class _Needs:
    """Which models a request needs."""

    rollout: bool
    tokens: bool


def decode_scores(
    document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall
) -> AskedScores:
    """Read a scoring request for a contract.

    Raises InvalidRequest and its kin, UnknownModel, CapabilityMissing, or Gone.
    """
    request = validate(ScoreRequest, document, [camera.name for camera in contract.cameras])
    check_model(request.model, contract)
    needs = _needs(request)
    reader = ObservationReader(contract, bounds, _context_lengths(contract, needs))
    observed = reader.read(request.observation, request.observation_id, recall)
    lengths = _row_counts(contract, needs, observed)
    candidates = _CandidateReader(contract, lengths, observed.layout).read(request, bounds.max_candidates)
    return AskedScores(
        query=_build_query(request, contract, observed, candidates),
        options=CallOptions(request.deadline_ms, request.priority),
        media=accepted,
        encoding=PictureEncoding(request.returns.encoding),
        client_time=request.client_time,
        metadata=request.metadata,
        warnings=observed.warnings + _find_odd_states(observed, candidates, contract),
    )


def _needs(request: ScoreRequest) -> _Needs:
    asked = [*request.objectives, *request.constraints]
    has_frames = request.returns.frames != "none" and request.returns.top_n > 0
    return _Needs(
        rollout=has_frames or any(_is_about_frames(term) for term in asked),
        tokens=any(_is_about_tokens(term) for term in asked),
    )


def _is_about_frames(asked: TermRequest) -> bool:
    is_goal = asked.kind is TermKind.GOAL_IMAGE and asked.params.metric is not GoalMetric.TOKENS
    return is_goal or asked.kind is TermKind.SPREAD


def _is_about_tokens(asked: TermRequest) -> bool:
    is_goal = asked.kind is TermKind.GOAL_IMAGE and asked.params.metric is GoalMetric.TOKENS
    return is_goal or asked.kind is TermKind.LIKELIHOOD


def _context_lengths(contract: Contract, needs: _Needs) -> range:
    """Say how many frames an observation may have: enough for each model, and room for a future after them."""
    # Where there is no rollout model, the terms that want one are refused for that, and not for too few frames.
    is_rolled_out = needs.rollout and "predict" in contract.capabilities
    least, most, step = contract.context_frames if is_rolled_out else 1, contract.context_frames, 1
    tokens = contract.tokens
    if tokens is not None:
        most = max(most, (tokens.max_grids // tokens.window_grids - 1) * tokens.window_frames)
        step = tokens.window_frames if needs.tokens else 1
    return range(-(-least // step) * step, most + 1, step)


def _row_counts(contract: Contract, needs: _Needs, observed: Observed) -> range:
    """Say how many rows a candidate may have."""
    tokens = contract.tokens
    if tokens is None or not needs.tokens:
        return range(1, contract.horizon + 1)
    room = (tokens.max_grids - _num_grids(observed, tokens)) // tokens.window_grids * tokens.window_frames
    most = min(room, contract.horizon) if needs.rollout else room
    if most < tokens.window_frames:
        raise refusal("/observation_id", "the observation leaves no room for a future")
    return range(tokens.window_frames, most + 1, tokens.window_frames)


def _num_grids(observed: Observed, tokens: TokenSpec) -> int:
    observation = observed.observation
    if observation.tokens is not None:
        return observation.tokens.num_grids
    windows, rest = divmod(len(observation.frames), tokens.window_frames)
    if rest:
        expected = f"a multiple of {tokens.window_frames} frames"
        raise refusal("/observation_id", "holds no whole windows", expected, f"{len(observation.frames)} frames")
    return windows * tokens.window_grids


@dataclass(frozen=True, slots=True)
class _CandidateReader:
    """Reads plans whose rows are written as the layout says; `lengths` says how many rows each may have."""

    contract: Contract
    lengths: range
    layout: StateLayout

    def read(self, request: ScoreRequest, max_candidates: int) -> tuple[Candidate, ...]:
        """Read every plan. Raises InvalidRequest and its kin."""
        plans, tokens = _split(request.candidates.values, self.contract.state.dim), self.contract.tokens
        most = max_candidates if tokens is None else min(max_candidates, tokens.max_candidates)
        if len(plans) not in range(1, most + 1):
            raise refusal(
                _VALUES, "the number of candidates is wrong", f"1 to {most} candidates", f"{len(plans)} candidates"
            )
        ids = _read_ids(request.candidates.ids, len(plans))
        rows = self._read_plans(plans)
        faults = [self._find_fault(plan, f"{_VALUES}/{index}") for index, plan in enumerate(rows)]
        if None not in faults:
            reasons = [fault for fault in faults if fault is not None][:_MAX_REPORTED]
            raise NonFinite("Every candidate holds a number that is not finite.", reasons=reasons)
        return tuple(
            Candidate(index, ids[index], plan, None if fault is None else f"{fault.pointer} {fault.message}")
            for index, (plan, fault) in enumerate(zip(rows, faults, strict=True))
        )

    def _read_plans(self, plans: Sequence[object]) -> list[Float32[np.ndarray, "h d"]]:
        """Read the first candidate's rows, then the others', which must be as many."""
        first = self._read_rows(plans[0], 0, self.lengths)
        equal = range(len(first), len(first) + 1)
        return [first, *(self._read_rows(plan, index, equal) for index, plan in enumerate(plans[1:], 1))]

    def _read_rows(self, plan: object, index: int, lengths: range) -> Float32[np.ndarray, "h d"]:
        return read_rows(plan, f"{_VALUES}/{index}", self.contract.state, lengths, self.layout)

    def _find_fault(self, plan: Float32[np.ndarray, "h d"], pointer: str) -> Reason | None:
        wrong = np.argwhere(~np.isfinite(plan))
        if not len(wrong):
            return None
        row, column = int(wrong[0][0]), self.layout.column(int(wrong[0][1]))
        return Reason(f"{pointer}/{row}/{column}", "is not finite as float32", "a finite number")


def _split(values: object, dim: int) -> Sequence[object]:
    if isinstance(values, list) or (isinstance(values, np.ndarray) and values.ndim == 3):
        return list(values)
    received = f"an array of {values.ndim} axes" if isinstance(values, np.ndarray) else "no list"
    reason = Reason(_VALUES, "the candidates have the wrong shape", f"k x h x {dim} numbers", received)
    raise StateDimMismatch("Candidates need three axes.", reasons=[reason])


def _read_ids(ids: Sequence[str] | None, count: int) -> Sequence[str]:
    if ids is None:
        return [str(index) for index in range(count)]
    if len(ids) != count:
        raise refusal("/candidates/ids", "are not as many as the candidates", f"{count} ids", f"{len(ids)} ids")
    seen: set[str] = set()
    for position, name in enumerate(ids):
        if name in seen:
            raise refusal(f"/candidates/ids/{position}", "is there twice", "each id once")
        seen.add(name)
    return ids


def _build_query(
    request: ScoreRequest, contract: Contract, observed: Observed, candidates: tuple[Candidate, ...]
) -> ScoreQuery:
    horizon = len(candidates[0].rows)
    sampling = read_sampling(request.sampling, contract)
    ensemble = read_ensemble(request.ensemble, sampling.strategy, contract)
    if ensemble.tolerance is not None:
        raise refusal("/ensemble/tolerance", "would give candidates unequal ensembles", "no tolerance")
    reader = TermReader(contract, ensemble, horizon, observed.layout)
    return ScoreQuery(
        model=contract.model,
        observation=observed.observation,
        candidates=candidates,
        objectives=tuple(
            Objective(reader.read(asked, f"/objectives/{index}"), asked.weight)
            for index, asked in enumerate(request.objectives)
        ),
        constraints=tuple(
            Constraint(reader.read(asked, f"/constraints/{index}"), asked.max)
            for index, asked in enumerate(request.constraints)
        ),
        sampling=sampling,
        ensemble=ensemble,
        seed_policy=request.seed_policy,
        priority=request.priority,
        top_n=_read_top_n(request, len(candidates)),
        frame_indices=_frame_indices(request, contract, horizon),
    )


def _read_top_n(request: ScoreRequest, count: int) -> int:
    top_n = request.returns.top_n
    if top_n > count:
        raise refusal("/return/top_n", "is more than there are candidates", f"0..{count}", f"{top_n}")
    return top_n


def _frame_indices(request: ScoreRequest, contract: Contract, horizon: int) -> tuple[int, ...]:
    if request.returns.frames == "none":
        return ()
    if "predict" not in contract.capabilities:
        reason = Reason("/return/frames", "the model does not predict frames")
        raise CapabilityMissing("The model does not offer this.", reasons=[reason])
    return (horizon,) if request.returns.frames == "last" else tuple(range(1, horizon + 1))


def _find_odd_states(observed: Observed, candidates: Sequence[Candidate], contract: Contract) -> tuple[Warned, ...]:
    """Warn of states far from the training data, in the rows that came with this request."""
    past = observed.observation.states[: 0 if observed.is_stored else None]
    pointers = [f"{STATE_POINTER}/values/{row}" for row in range(len(past))]
    sound = [candidate for candidate in candidates if candidate.fault is None]
    for candidate in sound:
        pointers += [f"{_VALUES}/{candidate.index}/{row}" for row in range(len(candidate.rows))]
    states = np.concatenate([past, *(candidate.rows for candidate in sound)])
    outliers = find_outliers(states, contract.state, pointers, [observed.layout] * len(states))
    return (*outliers, *find_unit_doubts(states, contract.state, _VALUES))
