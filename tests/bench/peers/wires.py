"""One question in the form in which each server takes it best, and its answer back. Bytes only; opens no connection."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from peers.hosting.wire import REPLY_SHAPE, STATES_SHAPE, WorldRequest, pack

from foreframe_server.codec.documents import read_document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.load.traces import Ask

_CONTEXT, _CAMERA = 4, "head"
_MAX_VALUES = 100_000
_LENGTH = "inference-header-content-length"
_CONTROLLER, _BULK = 1, 2


@dataclass(frozen=True, slots=True)
class Sent:
    """What is posted."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came back. members, steps: as the server says; None where it does not say."""

    frames: np.ndarray
    members: int | None = None
    steps: int | None = None
    is_degraded: bool = False
    is_from_cache: bool = False


@dataclass(frozen=True, slots=True)
class Wire:
    """How questions are written and answers are read."""

    name: str
    write: Callable[[WorldRequest, Ask], Sent]
    read: Callable[[bytes, Mapping[str, str]], Answer]


def raw(path: str) -> Wire:
    """Send a header and bytes, take bytes."""
    return Wire("raw bytes", lambda request, _: Sent(path, pack(request)), lambda body, _: Answer(_frames(body)))


def base64_json(path: str) -> Wire:
    """Send and take the same bytes as text in JSON."""
    return Wire("base64 in JSON", lambda request, _: _write_base64(path, request), _read_base64)


def kserve(model: str) -> Wire:
    """Send and take KServe v2 tensors in binary."""
    return Wire("KServe v2 binary", lambda request, ask: _write_kserve(model, request, ask), _read_kserve)


def native() -> Wire:
    """Ask foreframe in MessagePack."""
    return Wire("MessagePack", _write_native, _read_native)


def _frames(body: bytes) -> np.ndarray:
    array = np.frombuffer(body, np.uint8)
    return array.reshape(REPLY_SHAPE) if array.size == np.prod(REPLY_SHAPE) else array


def _write_base64(path: str, request: WorldRequest) -> Sent:
    body = json.dumps({"body": base64.b64encode(pack(request)).decode()}).encode()
    return Sent(path, body, {"content-type": "application/json"})


def _read_base64(body: bytes, _: Mapping[str, str]) -> Answer:
    return Answer(_frames(base64.b64decode(json.loads(body)["frames"])))


def _write_kserve(model: str, request: WorldRequest, ask: Ask) -> Sent:
    tensors = [
        ("frames", "UINT8", request.frames[None]),
        ("states", "FP32", request.states.astype("<f4").reshape(1, *STATES_SHAPE)),
        ("seed", "UINT64", np.array([[request.seed]], "<u8")),
        ("members", "INT32", np.array([[request.members]], "<i4")),
    ]
    inputs = [
        {"name": name, "datatype": kind, "shape": each.shape, "parameters": {"binary_data_size": each.nbytes}}
        for name, kind, each in tensors
    ]
    outputs = [{"name": "mean", "parameters": {"binary_data": True}}]
    parameters = {"priority": _BULK if ask.priority == "bulk" else _CONTROLLER}
    head = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    body = head + b"".join(each.tobytes() for _, _, each in tensors)
    return Sent(f"/v2/models/{model}/infer", body, {_LENGTH: str(len(head))})


def _read_kserve(body: bytes, headers: Mapping[str, str]) -> Answer:
    return Answer(_frames(body[int(headers[_LENGTH]) :]))


def _write_native(request: WorldRequest, ask: Ask) -> Sent:
    height, width = request.frames.shape[1:3]
    clip = {"encoding": "raw_rgb8", "data": request.frames, "width": width, "height": height}
    is_drawn = ask.strategy == "sample"
    optional = {"deadline_ms": ask.deadline_ms, "stream_id": ask.stream_id}
    document: dict[str, object] = {
        "observation": {"cameras": {_CAMERA: clip}, "state": {"values": request.states[:_CONTEXT]}},
        "future": {"kind": "state", "values": request.states[_CONTEXT:]},
        **({"ensemble": {"size": request.members}} if is_drawn else {}),
        "sampling": {"strategy": ask.strategy, "seed": request.seed},
        "on_deadline": ask.on_deadline,
        "priority": ask.priority,
        "cache": ask.cache,
        **{name: value for name, value in optional.items() if value is not None},
        "return": {"encoding": "raw"},
    }
    kind = Media.MSGPACK.value
    return Sent("/v1/predictions", write_document(document, Media.MSGPACK), {"content-type": kind, "accept": kind})


def _read_native(body: bytes, _: Mapping[str, str]) -> Answer:
    document = read_document(body, Media.MSGPACK, max_values=_MAX_VALUES)
    frames = cast("list[Mapping[str, np.ndarray]]", document["frames"])
    ensemble = cast("Mapping[str, int]", document["ensemble"])
    return Answer(
        np.stack([frame["image"] for frame in frames]),
        members=ensemble["members"],
        steps=ensemble["steps"],
        is_degraded=document["degraded"] is not None,
        is_from_cache=ensemble["from_cache"] > 0,
    )
