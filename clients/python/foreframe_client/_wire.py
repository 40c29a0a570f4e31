"""The wire without any I/O: arguments become requests, replies become values or errors. Knows no connection, no time.

Bodies are MessagePack with array maps; replies may be MessagePack or JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import quote

import numpy as np

from foreframe_client._arrays import array_of_json, pack_array, unpack_arrays
from foreframe_client._encodings import FrameEncoding, write_frames
from foreframe_client._errors import (
    InvalidRequest,
    NonFinite,
    Problem,
    ProtocolError,
    Reason,
    ServerError,
    error_of,
)
from foreframe_client._fields import Fields
from foreframe_client._msgpack import decode, encode
from foreframe_client._types import (
    Camera,
    Degraded,
    FrameSelection,
    Model,
    Notice,
    Observation,
    Prediction,
    SpreadCalibration,
    StateCheck,
    StateSchema,
)

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, UInt8

MSGPACK = "application/msgpack"
JSON = "application/json"
_GATEWAY_STATUSES = (502, 503, 504)


@dataclass(frozen=True)
class Request:
    """One HTTP request to make."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """One HTTP reply as it came; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


def get(*segments: str) -> Request:
    """Ask for a resource by the segments of its path."""
    return Request("GET", "/" + "/".join(quote(segment, safe="") for segment in segments), {"accept": JSON})


def post(path: str, body: Mapping[str, object]) -> Request:
    """Send a map. Raises InvalidRequest when a value in it cannot be sent."""
    try:
        data = encode(body)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request cannot be sent: {error}") from error
    headers = {"content-type": MSGPACK, "accept": f"{MSGPACK}, application/problem+json"}
    return Request("POST", path, headers, data)


def delete(*segments: str) -> Request:
    """Ask for a resource to be forgotten, by the segments of its path."""
    return replace(get(*segments), method="DELETE")


def submit(path: str, body: Mapping[str, object], left_ms: Optional[int]) -> Request:
    """Send a question that is to be answered within what is left of its deadline. Raises InvalidRequest."""
    return post(path, {**body, **given(deadline_ms=left_ms)})


@dataclass(frozen=True)
class Layout:
    """How rows of states are written: the name and the unit of each number; None is as the model's schema has them."""

    names: Optional[List[str]] = None
    units: Optional[List[str]] = None

    @classmethod
    def of(cls, names: object, units: object) -> Layout:
        """Check what a caller says of rows. Raises InvalidRequest naming the argument."""
        return cls(_words("state_names", names), _words("state_units", units))


AS_THE_SCHEMA = Layout()


def _words(name: str, words: object) -> Optional[List[str]]:
    if words is None:
        return None
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise InvalidRequest(f"{name} must be a list of text")
    return list(words)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a robot saw and how it stood, checked."""

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    layout: Layout


def seen(
    frames: object, states: object, observation: Optional[Observation], layout: Layout = AS_THE_SCHEMA
) -> Union[Seen, Observation]:
    """Check what needs no contract: frames with their states, or what the server holds.

    Raises InvalidRequest or NonFinite naming the argument.
    """
    if observation is None and frames is None and states is None:
        raise InvalidRequest("give frames and states, or an observation")
    if observation is None:
        return Seen(pictures("frames", frames), state_rows("states", states), layout)
    if frames is not None or states is not None:
        raise InvalidRequest("frames and states must not be given beside an observation")
    if layout != AS_THE_SCHEMA:
        raise InvalidRequest("state_names and state_units must not be given beside an observation, which has its own")
    return observation


def pictures(name: str, frames: object) -> UInt8[np.ndarray, "t h w 3"]:
    """Check a sequence of pictures. Raises InvalidRequest naming the argument."""
    if not isinstance(frames, np.ndarray):
        hint = "; give its `.numpy()`" if hasattr(frames, "numpy") else ""
        raise InvalidRequest(f"{name} must be a uint8 NumPy array (RGB 0..255), not {type(frames).__name__}{hint}")
    if frames.dtype != np.uint8:
        raise InvalidRequest(f"{name} must be a uint8 array (RGB 0..255), not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise InvalidRequest(f"{name} must have axes t h w 3, not shape {frames.shape}")
    if frames.size == 0:
        raise InvalidRequest(f"{name} must have at least one picture, not shape {frames.shape}")
    return frames


def state_rows(name: str, states: object) -> Float32[np.ndarray, "n d"]:
    """Check state rows. Raises InvalidRequest or NonFinite naming the argument."""
    rows = floats(name, states, "n d")
    if not np.isfinite(rows).all():
        raise NonFinite(f"{name} holds NaN, infinity or a number beyond float32")
    return rows


def floats(name: str, values: object, axes: str) -> Float32[np.ndarray, "..."]:
    """Return numbers as an array with as many axes as are named. Raises InvalidRequest naming the argument."""
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values).astype(np.float32, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} must be an array of floats") from error
    if array.ndim != len(axes.split()):
        raise InvalidRequest(f"{name} must have axes {axes}, not shape {array.shape}")
    if array.size == 0:
        raise InvalidRequest(f"{name} must have at least one row and one column, not shape {array.shape}")
    return array


def whole(name: str, value: object) -> int:
    """Return a whole number as a plain int. Raises InvalidRequest naming the argument."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise InvalidRequest(f"{name} must be a whole number, not {type(value).__name__}")


def number(name: str, value: object) -> float:
    """Return a number as a plain float. Raises InvalidRequest or NonFinite naming the argument."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise InvalidRequest(f"{name} must be a number, not {type(value).__name__}")
    if not np.isfinite(value):
        raise NonFinite(f"{name} must be finite")
    return float(value)


def selection(frame_indices: FrameSelection) -> Union[str, List[int]]:
    """Write which frames to return. Raises InvalidRequest."""
    if isinstance(frame_indices, str):
        return frame_indices
    return [whole("frame_indices", index) for index in frame_indices]


def optional_whole(name: str, value: object) -> Optional[int]:
    """Return a whole number as a plain int, None as None. Raises InvalidRequest naming the argument."""
    return None if value is None else whole(name, value)


def sampling(strategy: str, steps: Optional[int], seed: Optional[int], guidance: Optional[float]) -> Dict[str, object]:
    """Write how to sample. Raises InvalidRequest."""
    counts = given(steps=optional_whole("steps", steps), seed=optional_whole("seed", seed))
    return {"strategy": strategy, **counts, **given(guidance=guidance)}


def observation(seen: Seen, camera: str, encoding: FrameEncoding = "raw") -> Dict[str, object]:
    """Write what the robot saw and how it stood. Raises InvalidRequest for frames that cannot be written so."""
    return {"cameras": {camera: write_frames(seen.frames, encoding)}, "state": rows(seen.states, seen.layout)}


def rows(states: Float32[np.ndarray, "n d"], layout: Layout = AS_THE_SCHEMA) -> Dict[str, object]:
    """Write state rows; an observation's layout is that of all other rows of its request, which say nothing of it."""
    return {"values": pack_array(states), **given(names=layout.names, units=layout.units)}


def variance_of(variance: Optional[str], ensemble: int) -> str:
    """Write how much to say of the spread, by default all where there is one: it takes two members."""
    return variance or ("map" if ensemble > 1 else "none")


def given(**fields: object) -> Dict[str, object]:
    """Leave out what is None: the server's defaults hold."""
    return {name: value for name, value in fields.items() if value is not None}


def read_prediction(reply: Reply) -> Prediction:
    """Read a prediction. Raises ProtocolError."""
    body = fields_of(reply)
    frames, ensemble, uncertainty = body.maps("frames"), body.map("ensemble"), body.optional_map("uncertainty")
    return Prediction(
        id=body.text("id"),
        model=body.text("model"),
        revision=body.text("revision"),
        frames=stack([frame.array("image", "uint8", 3) for frame in frames]),
        frame_indices=np.array([frame.integer("index") for frame in frames], np.int64),
        times_s=np.array([frame.number("t_s") for frame in frames], np.float64),
        variance=_variance(uncertainty),
        spread_per_frame=_spread(uncertainty),
        calibration=_calibration(uncertainty),
        verdict=_verdict(uncertainty),
        trusted_horizon=None if uncertainty is None else uncertainty.optional_integer("trusted_horizon"),
        members=body.array("members", "uint8", 5) if body.has("members") else None,
        num_members=ensemble.integer("members"),
        requested_members=ensemble.integer("requested"),
        cached_members=ensemble.integer("from_cache"),
        correlation=ensemble.optional_number("correlation"),
        effective_members=ensemble.optional_number("effective_members"),
        standard_error=ensemble.optional_number("standard_error"),
        steps=ensemble.integer("steps"),
        strategy=ensemble.text("strategy"),
        seed=body.integer("seed"),
        degraded=_degraded(body.optional_map("degraded")),
        deadline_met=body.flag("deadline_met"),
        cache=body.text("cache"),
        determinism=body.text("determinism"),
        timings_ms=timings(body.map("timings_ms")),
        warnings=notices(body),
    )


def stack(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "f h w 3"]:
    """Put a reply's pictures into one array. Raises ProtocolError."""
    if not pictures or any(picture.shape != pictures[0].shape for picture in pictures):
        raise ProtocolError("the reply's pictures are not of one size")
    return np.stack(pictures)


def _variance(uncertainty: Optional[Fields]) -> Optional[Float32[np.ndarray, "f h w"]]:
    if uncertainty is None or not uncertainty.has("map"):
        return None
    return uncertainty.array("map", "float32", 3)


def _spread(uncertainty: Optional[Fields]) -> Optional[Float64[np.ndarray, " f"]]:
    if uncertainty is None or not uncertainty.has("spread_per_frame"):
        return None
    spread = uncertainty.numbers("spread_per_frame")
    return np.array(spread, np.float64) if spread else None


def _verdict(uncertainty: Optional[Fields]) -> str:
    if uncertainty is None or not uncertainty.has("verdict"):
        return "uncalibrated"
    return uncertainty.text("verdict")


def _calibration(uncertainty: Optional[Fields]) -> Optional[SpreadCalibration]:
    fields = None if uncertainty is None else uncertainty.optional_map("calibration")
    if fields is None:
        return None
    return SpreadCalibration(
        coverage=fields.number("coverage"),
        line_per_frame=np.array(fields.numbers("line_per_frame"), np.float64),
        error_per_frame=np.array(fields.numbers("error_per_frame"), np.float64)
        if fields.has("error_per_frame")
        else None,
    )


def _degraded(fields: Optional[Fields]) -> Optional[Degraded]:
    if fields is None:
        return None
    return Degraded(fields.integer("members"), fields.integer("steps"), fields.text("reason"))


def timings(fields: Fields) -> Dict[str, float]:
    """Read the milliseconds of each stage."""
    return {name: float(value) for name, value in fields.document.items() if isinstance(value, (int, float))}


def notices(body: Fields) -> Tuple[Notice, ...]:
    """Read a reply's warnings."""
    return tuple(
        Notice(item.text("code"), item.text("pointer"), item.text("message")) for item in body.maps("warnings")
    )


def read_models(reply: Reply) -> Tuple[Model, ...]:
    """Read the list of models. Raises ProtocolError."""
    return tuple(_model(fields) for fields in fields_of(reply).maps("models"))


def read_model(reply: Reply) -> Model:
    """Read one model's contract. Raises ProtocolError."""
    return _model(fields_of(reply))


def _model(fields: Fields) -> Model:
    cameras = (
        Camera(item.text("name"), item.integer("height"), item.integer("width")) for item in fields.maps("cameras")
    )
    return Model(
        id=fields.text("id"),
        family=fields.text("family"),
        revision=fields.text("revision"),
        cameras=tuple(cameras),
        context_frames=fields.integer("context_frames"),
        horizon=fields.integer("horizon"),
        fps=fields.number("fps"),
        state_schema=fields.text("state_schema"),
        state_dim=fields.integer("state_dim"),
        capabilities=tuple(fields.texts("capabilities")),
        document=fields.document,
    )


def read_state_schemas(reply: Reply) -> Tuple[StateSchema, ...]:
    """Read the list of state schemas. Raises ProtocolError."""
    return tuple(_state_schema(fields) for fields in fields_of(reply).maps("state_schemas"))


def _state_schema(fields: Fields) -> StateSchema:
    return StateSchema(
        name=fields.text("name"),
        names=tuple(fields.texts("names")),
        units=tuple(fields.texts("units")),
        document=fields.document,
    )


def read_state_check(reply: Reply) -> StateCheck:
    """Read what became of rows that were tried. Raises ProtocolError."""
    body = fields_of(reply)
    first_row = np.array(body.numbers("first_row"), np.float32)
    return StateCheck(body.text("name"), body.integer("rows"), first_row, notices(body))


def read_document(reply: Reply) -> Mapping[str, object]:
    """Read a map as it is. Raises ProtocolError."""
    return fields_of(reply).document


def fields_of(reply: Reply) -> Fields:
    """Decode a reply's body. Raises ProtocolError."""
    try:
        if reply.media_type == MSGPACK:
            return Fields(unpack_arrays(decode(reply.body)))
        return Fields(json.loads(reply.body.decode(), object_hook=array_of_json))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            f"the reply ({reply.status}, {reply.media_type or 'no content type'}) is unreadable: {error}{_doubt(reply)}"
        ) from error


def refusal(reply: Reply) -> Optional[ServerError]:
    """Return the error that a reply stands for, None for a success."""
    if 200 <= reply.status < 300:
        return None
    try:
        return _problem(reply)
    except ProtocolError:
        return _foreign(reply)


def _problem(reply: Reply) -> ServerError:
    fields = fields_of(reply)
    reasons = fields.maps("errors") if fields.has("errors") else []
    problem = Problem(
        code=fields.text("code"),
        status=reply.status,
        is_retryable=fields.flag("retryable"),
        request_id=fields.text("request_id") if fields.has("request_id") else None,
        reasons=tuple(_reason(reason) for reason in reasons),
        retry_after_ms=fields.integer("retry_after_ms") if fields.has("retry_after_ms") else _retry_after_ms(reply),
    )
    return error_of(fields.text("detail"), problem)


def _reason(fields: Fields) -> Reason:
    return Reason(
        fields.text("pointer"),
        fields.text("message"),
        fields.text("expected") if fields.has("expected") else None,
        fields.text("received") if fields.has("received") else None,
    )


def _foreign(reply: Reply) -> ServerError:
    """Stand for a refusal by something between client and server: only `Retry-After` marks it as worth another try."""
    retry_after_ms = _retry_after_ms(reply)
    problem = Problem(
        "unknown",
        reply.status,
        is_retryable=retry_after_ms is not None,
        request_id=reply.headers.get("x-request-id"),
        retry_after_ms=retry_after_ms,
    )
    return error_of(f"the answer is {reply.status} without a problem document{_doubt(reply)}", problem)


def _doubt(reply: Reply) -> str:
    """Ask whether it is the wrong server that answers, unless it is a gateway that did not reach the right one."""
    is_page = reply.media_type == "text/html" and reply.status not in _GATEWAY_STATUSES
    return "; is this a foreframe server?" if is_page or reply.status == 404 else ""


def _retry_after_ms(reply: Reply) -> Optional[int]:
    seconds = reply.headers.get("retry-after", "").strip()
    return int(seconds) * 1000 if seconds.isdecimal() and len(seconds) < 10 else None
