"""An `Answer` to the bytes that were asked for: JSON, msgpack, mp4, png or animated webp. Knows no route."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Contract, Judgement, Prediction
from foreframe_server.calls import Answer, Call, Timings
from foreframe_server.codec.documents import write_document
from foreframe_server.codec.media import DOCUMENT_MEDIA, Media
from foreframe_server.codec.pictures import encode_jpeg, encode_png, encode_webp
from foreframe_server.codec.query import ReplyOptions
from foreframe_server.codec.video import encode_mp4
from foreframe_server.schemas import (
    DegradedReply,
    EnsembleReply,
    Picture,
    PictureEncoding,
    PredictedFrame,
    PredictionReply,
    SpreadCalibration,
    TimingsReply,
    Uncertainty,
    VarianceDetail,
    Warned,
)

_SPREAD_UNKNOWN = Warned(
    code="spread_unknown", pointer="/return/variance", message="fewer than two members have no variance"
)

_TIMING_NAMES = tuple(field.name for field in fields(Timings) if field.name != "cold")


@dataclass(frozen=True, slots=True)
class EncodedReply:
    """A reply's bytes. `headers` say what a picture cannot."""

    body: bytes
    media: Media
    headers: Mapping[str, str]


class Replied(Protocol):
    """A request of which only matters how its reply is wanted."""

    @property
    def reply(self) -> ReplyOptions:
        """How it is wanted."""
        ...

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What was changed or looks odd."""
        ...


def encode_prediction(asked: Replied, answer: Answer, contract: Contract, call: Call) -> EncodedReply:
    """Encode an answer as it was asked for. Sets `answer.timings.respond`."""
    start_s = time.monotonic()
    if asked.reply.media in DOCUMENT_MEDIA:
        body = _document(asked, answer, contract, call)
    else:
        body = _clip(asked.reply.media, answer.prediction, contract.fps)
    answer.timings.respond = (time.monotonic() - start_s) * 1000
    return EncodedReply(body, asked.reply.media, _headers(asked, answer))


def _clip(media: Media, prediction: Prediction, fps: float) -> bytes:
    if media is Media.MP4:
        return encode_mp4(prediction.frames, fps)
    return encode_webp(prediction.frames, fps) if media is Media.WEBP else encode_png(prediction.frames[-1])


def _headers(asked: Replied, answer: Answer) -> dict[str, str]:
    prediction, degraded = answer.prediction, answer.degraded
    headers = {
        "X-Foreframe-Seed": str(prediction.sampling.seed),
        "X-Foreframe-Members": str(prediction.num_members),
        "X-Foreframe-Cache": answer.cache.value,
    }
    if degraded is not None:
        headers["X-Foreframe-Degraded"] = f"members={degraded.members}, steps={degraded.steps}"
    if asked.warnings:
        headers["X-Foreframe-Warnings"] = ", ".join(dict.fromkeys(warning.code for warning in asked.warnings))
    return headers


def _document(asked: Replied, answer: Answer, contract: Contract, call: Call) -> bytes:
    start_s = time.monotonic()
    return write_prediction(build_reply(asked, answer, contract, call.request_id), asked.reply.media, call, start_s)


def write_prediction(reply: PredictionReply, media: Media, call: Call, start_s: float) -> bytes:
    """Write a reply that was begun at a time. It tells its own cost as far as that is known."""
    document = reply.model_dump(by_alias=True)
    # Pictures are encoded, only the envelope is left to write.
    now_s = time.monotonic()
    document["timings_ms"] |= {
        "respond": round((now_s - start_s) * 1000, 3),
        "total": round((now_s - call.received_s) * 1000, 3),
    }
    return write_document(document, media)


def build_reply(asked: Replied, answer: Answer, contract: Contract, request_id: str) -> PredictionReply:
    """Put an answer into the reply's fields. `timings_ms` holds what is known so far."""
    prediction, encoding = answer.prediction, asked.reply.encoding
    uncertainty = _uncertainty(answer, asked.reply.variance)
    is_blind = asked.reply.variance is VarianceDetail.MAP and uncertainty.map is None
    return PredictionReply(
        id=request_id,
        model=contract.model,
        revision=contract.revision,
        frames=write_frames(prediction, contract.fps, encoding),
        video=_video(prediction, contract.fps) if encoding is PictureEncoding.MP4 else None,
        members=_members(prediction.members, encoding) if asked.reply.has_members else None,
        uncertainty=uncertainty,
        ensemble=_ensemble(answer),
        degraded=None if answer.degraded is None else DegradedReply(**asdict(answer.degraded)),
        deadline_met=answer.deadline_met,
        seed=prediction.sampling.seed,
        determinism=answer.determinism,
        cache=answer.cache,
        timings_ms=_timings(answer.timings),
        warnings=[*asked.warnings, *([_SPREAD_UNKNOWN] if is_blind else [])],
        client_time=asked.reply.client_time,
        metadata=None if asked.reply.metadata is None else dict(asked.reply.metadata),
    )


def _timings(timings: Timings) -> TimingsReply:
    """Write timings for the wire, rounded to a microsecond."""
    rounded = {name: round(getattr(timings, name), 3) for name in _TIMING_NAMES}
    return TimingsReply(cold=timings.cold, **rounded)


def write_frames(prediction: Prediction, fps: float, encoding: PictureEncoding) -> list[PredictedFrame]:
    """Write every frame as it was asked for; with mp4 only its place and time."""
    has_images = encoding is not PictureEncoding.MP4
    return [
        PredictedFrame(index=index, t_s=index / fps, image=write_picture(frame, encoding) if has_images else None)
        for index, frame in zip(prediction.frame_indices, prediction.frames, strict=True)
    ]


def write_picture(frame: UInt8[np.ndarray, "h w 3"], encoding: PictureEncoding) -> Picture | np.ndarray:
    """Write one frame as it was asked for: an encoded picture, or the array itself."""
    if encoding is PictureEncoding.RAW:
        return frame
    is_jpeg = encoding is PictureEncoding.JPEG
    data = encode_jpeg(frame) if is_jpeg else encode_png(frame)
    kind = PictureEncoding.JPEG if is_jpeg else PictureEncoding.PNG
    return Picture(encoding=kind, width=frame.shape[1], height=frame.shape[0], data=data)


def _video(prediction: Prediction, fps: float) -> Picture:
    height, width = prediction.frames.shape[1:3]
    data = encode_mp4(prediction.frames, fps)
    return Picture(encoding=PictureEncoding.MP4, width=width, height=height, data=data)


def _members(members: UInt8[np.ndarray, "k f h w 3"], encoding: PictureEncoding) -> object:
    if encoding is PictureEncoding.RAW:
        return members
    return [[write_picture(frame, encoding) for frame in member] for member in members]


def _uncertainty(answer: Answer, detail: VarianceDetail) -> Uncertainty:
    prediction, judgement = answer.prediction, answer.judgement
    is_known = prediction.num_members > 1
    wants_spread = is_known and detail is not VarianceDetail.NONE
    return Uncertainty(
        members=prediction.num_members,
        spread_per_frame=[float(spread) for spread in prediction.spread_per_frame] if wants_spread else [],
        map=prediction.variance if is_known and detail is VarianceDetail.MAP else None,
        calibration=_calibration(judgement) if wants_spread and judgement is not None else None,
        verdict="uncalibrated" if judgement is None else judgement.verdict,
        trusted_horizon=None if judgement is None else judgement.trusted_horizon,
    )


def _calibration(judgement: Judgement) -> SpreadCalibration:
    error = judgement.error_per_frame
    return SpreadCalibration(
        coverage=judgement.coverage,
        line_per_frame=list(judgement.line_per_frame),
        error_per_frame=None if error is None else list(error),
    )


def _ensemble(answer: Answer) -> EnsembleReply:
    prediction, ensemble = answer.prediction, answer.prediction.ensemble
    return EnsembleReply(
        requested=ensemble.size,
        members=prediction.num_members,
        from_cache=answer.from_cache,
        steps=prediction.sampling.steps,
        strategy=prediction.sampling.strategy,
        reducer=ensemble.reducer,
        noise=ensemble.noise,
        correlation=prediction.correlation,
        effective_members=prediction.effective_members,
        standard_error=prediction.standard_error,
    )
