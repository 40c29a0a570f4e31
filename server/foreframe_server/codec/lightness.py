"""What is read or written in less time than it takes to hand it to a thread, about half a millisecond at most.

Knows documents and sizes. Pictures that have to be decoded, encoded or resized are never light.
"""

from collections.abc import Mapping

import numpy as np

from foreframe_server.calls import Answer
from foreframe_server.codec.documents import Document, read_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.query import Asked
from foreframe_server.errors import InvalidRequest
from foreframe_server.schemas import Encoding, PictureEncoding, VarianceDetail

MAX_LIGHT_BYTES = 2**18
_MAX_LIGHT_VALUES = 256


def read_light(body: object, media: Media) -> Document | None:
    """Read a body of few values, which is msgpack with arrays; None for any other and for what is no document."""
    if media is not Media.MSGPACK or not isinstance(body, memoryview) or body.nbytes > MAX_LIGHT_BYTES:
        return None
    try:
        return read_document(body, media, max_values=_MAX_LIGHT_VALUES)
    except InvalidRequest:
        return None


def is_light_prediction(document: Document) -> bool:
    """Whether a light body's pixels are taken as they are."""
    observation = document.get("observation")
    if not isinstance(observation, Mapping):
        return observation is None
    cameras = observation.get("cameras")
    return isinstance(cameras, Mapping) and all(_is_raw(clip) for clip in cameras.values())


def is_light_answer(asked: Asked, answer: Answer) -> bool:
    """Whether an answer is written with its pixels as they are, and they are few."""
    reply, prediction = asked.reply, answer.prediction
    if reply.media is not Media.MSGPACK or reply.encoding is not PictureEncoding.RAW:
        return False
    members = prediction.members.nbytes if reply.has_members else 0
    variance = prediction.variance.nbytes if reply.variance is VarianceDetail.MAP else 0
    return prediction.frames.nbytes + members + variance <= MAX_LIGHT_BYTES


def _is_raw(clip: object) -> bool:
    if not isinstance(clip, Mapping) or "resize" in clip:
        return False
    content = clip.get("frames") if clip.get("data") is None else clip["data"]
    is_raw_bytes = clip.get("encoding") == Encoding.RAW_RGB8 and isinstance(content, bytes | memoryview)
    return is_raw_bytes or isinstance(content, np.ndarray)
