"""The messages of a log: their schemas, and how they are written and read. Knows no file.

Source of `foxglove.CompressedImage`: the JSON schemas of foxglove/foxglove-sdk. Times are nanoseconds.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import EnsembleSpec, NoisePlan, Prediction, Query, Reducer, Sampling, Strategy
from foreframe_engines.errors import DatasetError
from foreframe_engines.readers.pixels import decode_still
from foreframe_server.codec.pictures import encode_png

IMAGE: Final = "foxglove.CompressedImage"
STATE: Final = "foreframe.State"
REQUEST: Final = "foreframe.Request"
PREDICTION: Final = "foreframe.Prediction"
STATE_TOPIC, REQUEST_TOPIC, PREDICTION_TOPIC = "/state", "/requests", "/predictions"
_SECOND: Final = 1_000_000_000

_TIME = {
    "type": "object",
    "title": "time",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_OBJECT = {"type": "object"}
_FIELDS: Final[Mapping[str, Mapping[str, object]]] = {
    IMAGE: {
        "timestamp": _TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
    STATE: {
        "timestamp": _TIME,
        "segment": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "values": _NUMBERS,
    },
    REQUEST: {
        "timestamp": _TIME,
        "request_id": {"type": "string"},
        "context": {"type": "array", "items": _TIME},
        "states": {"type": "array", "items": _NUMBERS},
        "frame_indices": {"type": "array", "items": {"type": "integer"}},
        "sampling": _OBJECT,
        "ensemble": _OBJECT,
    },
    PREDICTION: {
        "timestamp": _TIME,
        "request_id": {"type": "string"},
        "frame_indices": {"type": "array", "items": {"type": "integer"}},
        "members": {"type": "integer"},
        "spread_per_frame": _NUMBERS,
        "sampling": _OBJECT,
    },
}


def schema_of(name: str) -> bytes:
    """Write a message's JSON schema."""
    properties = _FIELDS[name]
    schema = {"title": name, "type": "object", "properties": properties, "required": list(properties)}
    return json.dumps(schema).encode()


def camera_topic(name: str) -> str:
    """Name the topic of a camera's frames; dots and slashes would split it."""
    return f"/camera/{_flat(name)}"


def prediction_topic(name: str) -> str:
    """Name the topic of a camera's predicted frames."""
    return f"/prediction/{_flat(name)}"


def _flat(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")


def write_image(frame: UInt8[np.ndarray, "h w 3"], camera: str, at_ns: int) -> bytes:
    """Write a frame as PNG."""
    data = base64.b64encode(encode_png(frame)).decode()
    return _write({"timestamp": _time(at_ns), "frame_id": camera, "data": data, "format": "png"})


def write_state(values: Float32[np.ndarray, " d"], names: tuple[str, ...], segment: int, at_ns: int) -> bytes:
    """Write a row of states; rows of one segment follow each other without a gap."""
    record = {"segment": segment, "names": list(names), "values": values.tolist()}
    return _write({"timestamp": _time(at_ns), **record})


def write_request(query: Query, request_id: str, context_ns: list[int], at_ns: int) -> bytes:
    """Write what was asked; its frames are those shown at `context_ns`."""
    record = {
        "timestamp": _time(at_ns),
        "request_id": request_id,
        "context": [_time(shown_ns) for shown_ns in context_ns],
        "states": query.states.tolist(),
        "frame_indices": list(query.frame_indices),
        "sampling": asdict(query.sampling),
        "ensemble": asdict(query.ensemble),
    }
    return _write(record)


def write_prediction(prediction: Prediction, request_id: str, details: Mapping[str, object], at_ns: int) -> bytes:
    """Write how a prediction came to be, without its pixels. details: what else is known of it."""
    record = {
        "timestamp": _time(at_ns),
        "request_id": request_id,
        "frame_indices": list(prediction.frame_indices),
        "members": prediction.num_members,
        "spread_per_frame": list(prediction.spread_per_frame),
        "sampling": asdict(prediction.sampling),
        **details,
    }
    return _write(record)


def _write(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def _time(at_ns: int) -> dict[str, int]:
    seconds, rest = divmod(at_ns, _SECOND)
    return {"sec": seconds, "nsec": rest}


def read_document(data: bytes, name: str) -> dict[str, Any]:
    """Read a message of JSON. Raises DatasetError."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"a message of {name} is not JSON") from error
    if not isinstance(record, dict):
        raise DatasetError(f"a message of {name} is not an object")
    return record


def read_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Read a frame. Raises DatasetError."""
    try:
        picture = base64.b64decode(read_document(data, name)["data"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise DatasetError(f"a message of {name} holds no base64 picture") from error
    return decode_still(picture, f"a picture of {name}")


def read_query(record: Mapping[str, Any], context: UInt8[np.ndarray, "t h w 3"], model: str) -> Query:
    """Rebuild what was asked, of a model. Raises DatasetError."""
    try:
        return Query(
            model=model,
            context=context,
            states=np.asarray(record["states"], np.float32),
            frame_indices=tuple(int(index) for index in record["frame_indices"]),
            sampling=_read_sampling(record["sampling"]),
            ensemble=_read_ensemble(record["ensemble"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"a message of {REQUEST_TOPIC} cannot be read: {error}") from error


def read_context_ns(record: Mapping[str, Any]) -> list[int]:
    """Read when the frames of a request were shown. Raises DatasetError."""
    try:
        return [int(time["sec"]) * _SECOND + int(time["nsec"]) for time in record["context"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"a message of {REQUEST_TOPIC} names no frames") from error


def _read_sampling(record: Mapping[str, Any]) -> Sampling:
    strategy, guidance = Strategy(record["strategy"]), float(record.get("guidance", 1.0))
    return Sampling(strategy, int(record["steps"]), int(record["seed"]), guidance)


def _read_ensemble(record: Mapping[str, Any]) -> EnsembleSpec:
    tolerance = record.get("tolerance")
    return EnsembleSpec(
        int(record["size"]),
        Reducer(record["reducer"]),
        NoisePlan(record["noise"]),
        None if tolerance is None else float(tolerance),
    )
