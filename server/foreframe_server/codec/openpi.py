"""openpi's messages: flat observations of one tick, arrays as maps, to a prediction's query and its frames back.

A policy sees one frame a tick and a world model several, so a robot's last frames are kept: see `History`. Knows no
socket.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import Contract
from foreframe_server.calls import Answer, Call, CallOptions, Timings
from foreframe_server.codec.arrays import DocumentError, array_of_map
from foreframe_server.codec.bounds import Bounds
from foreframe_server.codec.context import STATE_POINTER, Recall
from foreframe_server.codec.documents import Document, read_document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.messages import take_fields
from foreframe_server.codec.query import Asked, decode_prediction
from foreframe_server.codec.reply import EncodedReply, build_reply
from foreframe_server.codec.states import read_state
from foreframe_server.errors import InvalidRequest, Reason, ServiceError
from foreframe_server.policy_schemas import PolicyOptions
from foreframe_server.schemas import Encoding, PictureEncoding, Warned

_PREFIX = re.compile(r"^observation[/.](?:images?[/.])?")
_VECTORS: Final = {"state": "state", "actions": "actions", "action": "actions"}
_RESERVED: Final = ("observation", "observation_id", "future")
_CAMERA = re.compile(r"^/observation/cameras(/[^/]+)?.*")
_POINTERS: Final = {
    "/observation/state/values": "/state",
    "/observation/state": "/state",
    "/future/values": "/actions",
}
_REPLACED: Final = ("id", "frames", "video", "timings_ms")
_UNTOLD: Final = frozenset({"receive", "total", "step_batch_mean", "cold"})
_MAX_TEXT: Final = 240
_CHANNELS: Final = 3
_CLIP_AXES: Final = 4
_WHITE: Final = 255


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What a robot saw and did last, as many frames as a context has, oldest first.

    frames: uint8 RGB 0..255, in the model's size. states: physical units. num_seen: how many frames differ in time;
    those before them repeat the oldest.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    num_seen: int


@dataclass(frozen=True, slots=True, eq=False)
class AskedStep:
    """One decoded request, and the history that the next one starts from."""

    asked: Asked
    history: History

    @property
    def options(self) -> CallOptions:
        """How the call is wanted."""
        return self.asked.options


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """A message's fields by what they are: pictures by camera, `state` and `actions`, and all others."""

    images: Document = field(default_factory=dict)
    vectors: Document = field(default_factory=dict)
    options: Document = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A context as the wire has it, and how many of its frames are no repetition."""

    frames: object
    states: object
    num_seen: int


def read_policy_message(data: bytes, *, max_values: int) -> Document:
    """Read a message; arrays are maps as openpi writes them, or as msgpack-numpy does. Raises InvalidRequest."""
    document = read_document(data, Media.MSGPACK, max_values=max_values)
    try:
        return {key: _read_leaf(value) for key, value in document.items()}
    except DocumentError as error:
        raise InvalidRequest("An array is not what its map says.", reasons=[Reason("", str(error))]) from None


def _read_leaf(value: object) -> object:
    """Turn maps with msgpack-numpy's marker `nd` into arrays and numbers. openpi's own are arrays already."""
    if not isinstance(value, dict):
        return value
    if "nd" not in value:
        return {key: _read_leaf(item) for key, item in value.items()}
    shape = value.get("shape") if value["nd"] else []
    array = array_of_map({"data": value.get("data"), "dtype": value.get("type"), "shape": shape})
    return array if value["nd"] else array.item()


def decode_step(
    history: History | None, document: Document, accepted: Media, contract: Contract, bounds: Bounds, recall: Recall
) -> AskedStep:
    """Read an observation with the future it asks for, after what was seen before.

    Keys are openpi's and LeRobot's: `observation/<camera>`, `observation.images.<camera>` or `images`, where `image` is
    the contract's camera; `observation/state` or `state`; `actions` or `action`. A picture `h w 3` joins the history, a
    clip `t h w 3` takes its place; channels may stand first. All other fields are a prediction's. Raises as
    `decode_prediction`, with pointers of these keys.
    """
    try:
        parts = _sort_keys(document, contract.camera.name)
        options = take_fields(PolicyOptions, parts.options)
        seen = _look(parts, history, contract)
        asked = decode_prediction(_native(parts, options, seen), accepted, contract, bounds, recall)
        _check_reply(asked)
    except ServiceError as error:
        error.reasons = tuple(replace(reason, pointer=_own_pointer(reason.pointer)) for reason in error.reasons)
        raise
    count = contract.context_frames
    warnings = tuple(
        warning.model_copy(update={"pointer": _own_pointer(warning.pointer)}) for warning in asked.warnings
    )
    return AskedStep(
        replace(asked, warnings=(*warnings, *_warnings(options, seen, count))),
        History(asked.query.context, asked.query.states[:count], seen.num_seen),
    )


def _refusal(pointer: str, message: str, expected: str | None = None, received: str | None = None) -> InvalidRequest:
    return InvalidRequest("The observation cannot be used.", reasons=[Reason(pointer, message, expected, received)])


def _own_pointer(pointer: str) -> str:
    for native, own in _POINTERS.items():
        if pointer.startswith(native):
            return own + pointer.removeprefix(native)
    return _CAMERA.sub(r"/images\1", pointer)


def _sort_keys(document: Document, camera: str) -> _Parts:
    parts = _Parts()
    for key, value in document.items():
        name = _PREFIX.sub("", key)
        if name == "images" and isinstance(value, dict):
            for image_name, image in value.items():
                _claim(parts.images, image_name, image, "/images")
        elif name in _VECTORS:
            _claim(parts.vectors, _VECTORS[name], value, f"/{_VECTORS[name]}")
        elif name != key or name == "image":
            _claim(parts.images, camera if name == "image" else name, value, "/images")
        elif key in _RESERVED:
            raise _refusal("", "holds a field that is not known")
        else:
            parts.options[key] = value
    return parts


def _claim(fields: Document, name: str, value: object, pointer: str) -> None:
    if name in fields:
        raise _refusal(pointer, "is there twice, under two keys")
    fields[name] = value


def _look(parts: _Parts, history: History | None, contract: Contract) -> _Seen:
    """Return the context: the clip that came, or the picture that came after those before it."""
    if "state" not in parts.vectors:
        raise _refusal("/state", "is missing")
    state = parts.vectors["state"]
    if set(parts.images) != {contract.camera.name}:
        return _Seen([], state, 0)  # refused with the cameras' names where every request's are
    image = _read_image(parts.images[contract.camera.name])
    if image.ndim == _CLIP_AXES:
        return _Seen(image, state, contract.context_frames)
    row = read_state(state, f"{STATE_POINTER}/values", contract.state)
    if history is None:
        count = contract.context_frames
        return _Seen([image] * count, np.repeat(row[None], count, axis=0), 1)
    states = np.concatenate([history.states[1:], row[None]])
    return _Seen([*history.frames[1:], image], states, min(history.num_seen + 1, len(states)))


def _read_image(value: object) -> UInt8[np.ndarray, "*t h w 3"]:
    if not isinstance(value, np.ndarray) or value.ndim not in (_CLIP_AXES - 1, _CLIP_AXES):
        received = f"an array of {value.ndim} axes" if isinstance(value, np.ndarray) else "no array"
        raise _refusal("/images", "is no picture", "an array h w 3 or t h w 3", received)
    image = _as_bytes(value) if value.dtype.kind == "f" else value
    if image.shape[-1] != _CHANNELS and image.shape[-3] == _CHANNELS:
        return np.moveaxis(image, -3, -1)
    return image


def _as_bytes(image: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Return LeRobot's float pictures 0..1 as bytes."""
    if not ((image >= 0) & (image <= 1)).all():
        raise _refusal("/images", "holds floats that are no brightness", "0..1, or uint8 0..255")
    return np.rint(image * _WHITE).astype(np.uint8)


def _native(parts: _Parts, options: PolicyOptions, seen: _Seen) -> Document:
    """Write the request that says the same in the words of HTTP."""
    if "actions" not in parts.vectors:
        raise _refusal("/actions", "is missing: a world model is asked what becomes of them")
    clip: Document = {"encoding": Encoding.RAW_RGB8, "frames": seen.frames, "resize": options.resize}
    returns = parts.options.get("return", {})
    return {
        **parts.options,
        "observation": {"cameras": dict.fromkeys(parts.images, clip), "state": {"values": seen.states}},
        "future": {"values": parts.vectors["actions"]},
        "return": {"encoding": PictureEncoding.RAW, **returns} if isinstance(returns, dict) else returns,
    }


def _check_reply(asked: Asked) -> None:
    if asked.reply.encoding is not PictureEncoding.RAW:
        raise _refusal("/return/encoding", "frames come back as one array here", "raw")


def _warnings(options: PolicyOptions, seen: _Seen, num_frames: int) -> list[Warned]:
    warnings = []
    if seen.num_seen < num_frames:
        message = f"{num_frames - seen.num_seen} of {num_frames} context frames repeat the first that was seen"
        warnings.append(Warned(code="context_repeated", pointer="/images", message=message))
    if options.prompt:
        warnings.append(Warned(code="prompt_unused", pointer="/prompt", message="the model takes no text"))
    return warnings


def encode_step(
    prev_total_ms: float | None, step: AskedStep, answer: Answer, contract: Contract, call: Call
) -> EncodedReply:
    """Write an answer: the fields of HTTP's reply, but `frames` one array uint8 `f h w 3`, first axis time.

    prev_total_ms: what the connection's last reply took until it was sent. Sets `answer.timings.respond`.
    """
    start_s = time.monotonic()
    reply = build_reply(step.asked, answer, contract, call.request_id).model_dump(by_alias=True)
    document: Document = {
        "frames": answer.prediction.frames,
        "frame_indices": [frame["index"] for frame in reply["frames"]],
        "t_s": [frame["t_s"] for frame in reply["frames"]],
        "request_id": call.request_id,
        **{name: value for name, value in reply.items() if name not in _REPLACED},
    }
    answer.timings.respond = (time.monotonic() - start_s) * 1000
    document["server_timing"] = _server_timing(call.received_s, prev_total_ms, answer.timings)
    return EncodedReply(write_document(document, Media.MSGPACK), Media.MSGPACK, {})


def encode_reset(request_id: str, received_s: float, prev_total_ms: float | None) -> bytes:
    """Write that a history is forgotten."""
    timing = _server_timing(received_s, prev_total_ms)
    return write_document({"status": "reset", "request_id": request_id, "server_timing": timing}, Media.MSGPACK)


def _server_timing(
    received_s: float, prev_total_ms: float | None, timings: Timings | None = None
) -> Mapping[str, float]:
    """Return milliseconds under openpi's names, and each stage's."""
    told = {"infer_ms": (time.monotonic() - received_s) * 1000}
    if prev_total_ms is not None:
        told["prev_total_ms"] = prev_total_ms
    if timings is not None:
        told |= {f"{name}_ms": value for name, value in asdict(timings).items() if name not in _UNTOLD}
    return {name: round(value, 3) for name, value in told.items()}


def encode_refusal(error: ServiceError) -> str:
    """Write a refusal as openpi's clients take one, which is text: its code, and a message for a person."""
    return json.dumps({"code": error.code, "message": " ".join([error.detail, *map(_told, error.reasons[:1])])})


def _told(reason: Reason) -> str:
    expected = None if reason.expected is None else f"expected {reason.expected}"
    received = None if reason.received is None else f"received {reason.received}"
    extra = ", ".join(part for part in (expected, received) if part is not None)
    text = f"{reason.pointer}: {reason.message}" if reason.pointer else reason.message
    return (f"{text} ({extra})" if extra else text)[:_MAX_TEXT]
