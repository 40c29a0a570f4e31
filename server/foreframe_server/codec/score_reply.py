"""A scoring's answer to the bytes that were asked for: JSON or msgpack. Knows no route."""

import time
from dataclasses import asdict

from foreframe_engines import Contract
from foreframe_server.calls import Call, ScoreTimings
from foreframe_server.codec.documents import write_document
from foreframe_server.codec.reply import EncodedReply, write_picture
from foreframe_server.codec.scores import AskedScores
from foreframe_server.schemas import PredictedFrame, Warned
from foreframe_server.score_schemas import (
    CandidateReply,
    CandidateUncertainty,
    ConstraintReply,
    ScoreReply,
    ScoreTimingsReply,
)
from foreframe_server.scores import CandidateOutcome, ConstraintResult, ScoreAnswer, Spreads


def encode_scores(asked: AskedScores, answer: ScoreAnswer, contract: Contract, call: Call) -> EncodedReply:
    """Encode an answer as it was asked for. Sets `answer.timings.respond`."""
    start_s = time.monotonic()
    document = _build(asked, answer, contract, call.request_id).model_dump(by_alias=True)
    now_s = time.monotonic()
    answer.timings.respond = (now_s - start_s) * 1000
    answer.timings.total = (now_s - call.received_s) * 1000
    document["timings_ms"] = _timings(answer.timings).model_dump()
    return EncodedReply(write_document(document, asked.media), asked.media, {})


def _build(asked: AskedScores, answer: ScoreAnswer, contract: Contract, request_id: str) -> ScoreReply:
    ranks = {index: rank for rank, index in enumerate(answer.ranking, 1)}
    return ScoreReply(
        id=request_id,
        model=contract.model,
        revision=contract.revision,
        best_index=answer.ranking[0] if answer.ranking else None,
        rank_stability=answer.rank_stability,
        seed=asked.query.sampling.seed,
        strategy=asked.query.sampling.strategy,
        members=answer.members,
        candidates=[
            _candidate(outcome, ranks.get(outcome.candidate.index), _frames(asked, answer, outcome, contract.fps))
            for outcome in answer.outcomes
        ],
        scored=len(answer.ranking),
        deadline_met=answer.deadline_met,
        timings_ms=_timings(answer.timings),
        warnings=[*asked.warnings, *_warnings(answer)],
        client_time=asked.client_time,
        metadata=None if asked.metadata is None else dict(asked.metadata),
    )


def _candidate(outcome: CandidateOutcome, rank: int | None, frames: list[PredictedFrame] | None) -> CandidateReply:
    score = outcome.score
    return CandidateReply(
        index=outcome.candidate.index,
        id=outcome.candidate.id,
        status=outcome.status,
        reason=outcome.reason,
        cost=None if score is None else score.cost.value,
        terms=None if score is None else dict(score.terms),
        constraints=None if score is None else [_constraint(result) for result in score.constraints],
        feasible=None if score is None else score.is_feasible,
        rank=rank,
        uncertainty=None if outcome.spreads is None else _uncertainty(outcome.spreads),
        frames=frames,
    )


def _constraint(result: ConstraintResult) -> ConstraintReply:
    return ConstraintReply(kind=result.kind, value=result.value, max=result.max_value, satisfied=result.is_satisfied)


def _uncertainty(spreads: Spreads) -> CandidateUncertainty:
    return CandidateUncertainty(
        frames=list(spreads.frame_indices), spread_per_frame=list(spreads.spread_per_frame), members=spreads.members
    )


def _frames(
    asked: AskedScores, answer: ScoreAnswer, outcome: CandidateOutcome, fps: float
) -> list[PredictedFrame] | None:
    frames = answer.frames.get(outcome.candidate.index)
    if frames is None:
        return None
    return [
        PredictedFrame(index=index, t_s=index / fps, image=write_picture(frame, asked.encoding))
        for index, frame in zip(asked.query.frame_indices, frames, strict=True)
    ]


def _warnings(answer: ScoreAnswer) -> list[Warned]:
    warnings = []
    if answer.missing_frames:
        message = f"frames of {answer.missing_frames} candidates could not be predicted in time"
        warnings.append(Warned(code="frames_missing", pointer="/return/frames", message=message))
    scores = [outcome.score for outcome in answer.outcomes if outcome.score is not None]
    if not any(score.is_feasible for score in scores):
        message = "no scored candidate satisfies every constraint; the best one exceeds them least"
        warnings.append(Warned(code="none_feasible", pointer="/constraints", message=message))
    return warnings


def _timings(timings: ScoreTimings) -> ScoreTimingsReply:
    """Write timings for the wire, rounded to a microsecond."""
    return ScoreTimingsReply(**{name: round(value, 3) for name, value in asdict(timings).items()})
