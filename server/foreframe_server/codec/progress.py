"""A prediction's progress to bytes, and to server-sent events (WHATWG HTML, 9.2). Knows no route and no stream."""

import time

from foreframe_engines import Contract, Prediction
from foreframe_engines.schedule import num_steps
from foreframe_server.calls import Call
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import Recall
from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.query import Asked, decode_prediction
from foreframe_server.codec.reply import write_frames
from foreframe_server.errors import InvalidRequest, Reason
from foreframe_server.progress_schemas import AcceptedEvent, EstimateEvent, UpdateEvent
from foreframe_server.schemas import PictureEncoding, VarianceDetail, WireReply

KEEP_ALIVE = b": alive\n\n"
"""A comment: nobody reads it, and no proxy takes the stream for dead."""


def decode_streamed(document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall) -> Asked:
    """Read a prediction request whose progress is told; events hold JSON. Raises as `decode_prediction`."""
    media = Media.JSON if accepted is Media.EVENTS else accepted
    asked = decode_prediction(document, media, contract, bounds, recall)
    if asked.reply.encoding is PictureEncoding.MP4:
        reason = Reason("/return/encoding", "progress is told in single frames only", "png, jpeg, raw")
        raise InvalidRequest("The request cannot be served as it is.", reasons=[reason])
    return asked


def write_event(number: int, name: str, data: bytes) -> bytes:
    """Frame one event. data: one line."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode("ascii"), data)


def encode_accepted(asked: Asked, contract: Contract, call: Call) -> bytes:
    """Write how a request was understood."""
    query, deadline_s = asked.query, call.deadline_s
    return _write(
        asked,
        AcceptedEvent(
            id=call.request_id,
            model=contract.model,
            revision=contract.revision,
            requested=query.ensemble.size,
            steps=num_steps(query.sampling),
            seed=query.sampling.seed,
            deadline_ms=None if deadline_s is None else round(1000 * (deadline_s - call.received_s)),
        ),
    )


def encode_estimate(asked: Asked, prediction: Prediction, contract: Contract, call: Call) -> bytes:
    """Write where the first member is heading."""
    frames = write_frames(prediction, contract.fps, asked.reply.encoding)
    return _write(asked, EstimateEvent(frames=frames, elapsed_ms=_elapsed_ms(call)))


def encode_update(asked: Asked, prediction: Prediction, contract: Contract, call: Call) -> bytes:
    """Write what the members so far say."""
    has_spread = prediction.num_members > 1 and asked.reply.variance is not VarianceDetail.NONE
    return _write(
        asked,
        UpdateEvent(
            members=prediction.num_members,
            steps=prediction.sampling.steps,
            frames=write_frames(prediction, contract.fps, asked.reply.encoding),
            spread_per_frame=[float(spread) for spread in prediction.spread_per_frame] if has_spread else [],
            standard_error=prediction.standard_error,
            elapsed_ms=_elapsed_ms(call),
        ),
    )


def _elapsed_ms(call: Call) -> float:
    return round((time.monotonic() - call.received_s) * 1000, 3)


def _write(asked: Asked, event: WireReply) -> bytes:
    return write_document(event.model_dump(by_alias=True), asked.reply.media)
