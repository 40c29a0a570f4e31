"""The wire's bytes to a checked `Query` and an `Answer` back to bytes. Knows no route, no cache and no engine.

Everything here computes and may take long: call it in a thread, never on the event loop.
"""

from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import Recall
from foreframe_server.codec.documents import Document, read_document, write_document
from foreframe_server.codec.likelihoods import AskedLikelihood, decode_likelihood, encode_likelihood
from foreframe_server.codec.media import DOCUMENT_MEDIA, Media, read_accept, read_content_type
from foreframe_server.codec.messages import Message, read_message, take_fields, write_message
from foreframe_server.codec.observations import AskedObservation, decode_observation, encode_observation
from foreframe_server.codec.progress import (
    KEEP_ALIVE,
    decode_streamed,
    encode_accepted,
    encode_estimate,
    encode_update,
    write_event,
)
from foreframe_server.codec.query import Asked, ReplyOptions, decode_prediction, decode_state_check
from foreframe_server.codec.reply import EncodedReply, encode_prediction
from foreframe_server.codec.score_reply import encode_scores
from foreframe_server.codec.scores import AskedScores, decode_scores
from foreframe_server.codec.validation import validate

__all__ = [
    "DOCUMENT_MEDIA",
    "KEEP_ALIVE",
    "Asked",
    "AskedLikelihood",
    "AskedObservation",
    "AskedScores",
    "Bounds",
    "Document",
    "EncodedReply",
    "Media",
    "Message",
    "Recall",
    "ReplyOptions",
    "decode_likelihood",
    "decode_observation",
    "decode_prediction",
    "decode_scores",
    "decode_state_check",
    "decode_streamed",
    "encode_accepted",
    "encode_estimate",
    "encode_likelihood",
    "encode_observation",
    "encode_prediction",
    "encode_scores",
    "encode_update",
    "read_accept",
    "read_content_type",
    "read_document",
    "read_message",
    "take_fields",
    "validate",
    "write_document",
    "write_event",
    "write_message",
]
