"""The wire's bytes to a checked `Query` and an `Answer` back to bytes. Knows no route, no cache and no engine.

Everything here computes and may take long: call it in a thread, never on the event loop.
"""

from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import Recall
from foreframe_server.codec.documents import Document, read_document, write_document
from foreframe_server.codec.kserve import (
    EncodedInference,
    ExtensionMissing,
    Inference,
    Inferred,
    Wanted,
    choose_outputs,
    read_header_length,
    read_inference,
    write_inference,
)
from foreframe_server.codec.kserve_marks import SequenceMark, continue_from, read_mark
from foreframe_server.codec.kserve_models import (
    LIKELIHOOD,
    PREDICTION,
    SCORE,
    SEED,
    InputSpec,
    OutputSpec,
    TensorModel,
    likelihood_model,
    prediction_model,
    score_model,
)
from foreframe_server.codec.kserve_outputs import (
    LIKELIHOOD_OUTPUTS,
    PREDICTION_OUTPUTS,
    SCORE_OUTPUTS,
    OutputReader,
)
from foreframe_server.codec.kserve_rows import rename, write_rows
from foreframe_server.codec.lightness import is_light_answer, is_light_prediction, read_light
from foreframe_server.codec.likelihoods import AskedLikelihood, decode_likelihood, encode_likelihood
from foreframe_server.codec.media import BODY_MEDIA, DOCUMENT_MEDIA, REPLY_MEDIA, Media, read_accept, read_content_type
from foreframe_server.codec.messages import Message, read_message, take_fields, write_message
from foreframe_server.codec.multipart import PART_KEY, REQUEST_PART, Form, FormReader, read_form
from foreframe_server.codec.observations import AskedObservation, decode_observation, encode_observation
from foreframe_server.codec.progress import (
    KEEP_ALIVE,
    decode_streamed,
    encode_accepted,
    encode_estimate,
    encode_update,
    write_event,
)
from foreframe_server.codec.query import Asked, ReplyOptions, decode_prediction
from foreframe_server.codec.reply import EncodedReply, encode_prediction
from foreframe_server.codec.score_reply import encode_scores
from foreframe_server.codec.scores import AskedScores, decode_scores
from foreframe_server.codec.state_check import decode_state_check
from foreframe_server.codec.validation import validate

__all__ = [
    "BODY_MEDIA",
    "DOCUMENT_MEDIA",
    "KEEP_ALIVE",
    "LIKELIHOOD",
    "LIKELIHOOD_OUTPUTS",
    "PART_KEY",
    "PREDICTION",
    "PREDICTION_OUTPUTS",
    "REPLY_MEDIA",
    "REQUEST_PART",
    "SCORE",
    "SCORE_OUTPUTS",
    "SEED",
    "Asked",
    "AskedLikelihood",
    "AskedObservation",
    "AskedScores",
    "Bounds",
    "Document",
    "EncodedInference",
    "EncodedReply",
    "ExtensionMissing",
    "Form",
    "FormReader",
    "Inference",
    "Inferred",
    "InputSpec",
    "Media",
    "Message",
    "OutputReader",
    "OutputSpec",
    "Recall",
    "ReplyOptions",
    "SequenceMark",
    "TensorModel",
    "Wanted",
    "choose_outputs",
    "continue_from",
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
    "is_light_answer",
    "is_light_prediction",
    "likelihood_model",
    "prediction_model",
    "read_accept",
    "read_content_type",
    "read_document",
    "read_form",
    "read_header_length",
    "read_inference",
    "read_light",
    "read_mark",
    "read_message",
    "rename",
    "score_model",
    "take_fields",
    "validate",
    "write_document",
    "write_event",
    "write_inference",
    "write_message",
    "write_rows",
]
