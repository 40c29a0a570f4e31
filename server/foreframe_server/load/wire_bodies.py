"""One question in every form in which its frames can be sent. Bodies only; knows no connection."""

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgpack
import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Contract
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.codec.multipart import PART_KEY, REQUEST_PART
from foreframe_server.codec.pictures import encode_jpeg
from foreframe_server.codec.video import encode_mp4

_Frames = UInt8[np.ndarray, "t h w 3"]
_FRAMES_PART = "frames"


@dataclass(frozen=True, slots=True)
class Body:
    """What is posted."""

    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, but for the frames."""

    contract: Contract
    policy: str
    seed: int

    def with_clip(self, clip: Mapping[str, object]) -> dict[str, object]:
        """Write the request with what a camera saw."""
        contract = self.contract
        rows = np.linspace(0, 1, contract.context_frames + contract.horizon)[:, None] * np.ones(contract.state.dim)
        values = rows.tolist()
        return {
            "observation": {
                "cameras": {contract.camera.name: dict(clip)},
                "state": {"values": values[: contract.context_frames]},
            },
            "future": {"values": values[contract.context_frames :]},
            "frames": "last",
            "sampling": {"strategy": "sample", "steps": 1, "seed": self.seed},
            "return": {"encoding": "raw", "variance": "none"},
            "cache": self.policy,
        }


def write_body(form: str, seed: int, *, contract: Contract, frames: _Frames, policy: str) -> Body:
    """Write a question in one of WIRE_FORMS. policy: its use of the cache. Raises KeyError for another form."""
    return WIRE_FORMS[form](_Question(contract, policy, seed), frames)


def _raw_clip(frames: _Frames, data: object) -> dict[str, object]:
    return {"encoding": "raw_rgb8", "height": frames.shape[1], "width": frames.shape[2], "data": data}


def _json(question: _Question, frames: _Frames) -> Body:
    clip = _raw_clip(frames, base64.b64encode(frames.tobytes()).decode())
    return _body(json.dumps(question.with_clip(clip)).encode(), "application/json")


def _msgpack(question: _Question, frames: _Frames) -> Body:
    packed = msgpack.packb(question.with_clip({"frames": frames}), default=map_for_msgpack)
    return _body(packed, "application/msgpack")


def _multipart_raw(question: _Question, frames: _Frames) -> Body:
    return _form(question.with_clip(_raw_clip(frames, {PART_KEY: _FRAMES_PART})), {_FRAMES_PART: frames.tobytes()})


def _multipart_jpeg(question: _Question, frames: _Frames) -> Body:
    parts = {f"{_FRAMES_PART}{index}": encode_jpeg(frame) for index, frame in enumerate(frames)}
    clip = {"encoding": "jpeg", "frames": [{PART_KEY: name} for name in parts]}
    return _form(question.with_clip(clip), parts)


def _multipart_mp4(question: _Question, frames: _Frames) -> Body:
    clip = {"encoding": "mp4", "data": {PART_KEY: _FRAMES_PART}}
    return _form(question.with_clip(clip), {_FRAMES_PART: encode_mp4(frames, question.contract.fps)})


WIRE_FORMS: Mapping[str, Callable[[_Question, _Frames], Body]] = {
    "json base64 raw": _json,
    "msgpack raw": _msgpack,
    "multipart raw": _multipart_raw,
    "multipart jpeg": _multipart_jpeg,
    "multipart mp4": _multipart_mp4,
}


def _form(request: Mapping[str, object], parts: Mapping[str, bytes]) -> Body:
    boundary = secrets.token_hex(16)
    content = {REQUEST_PART: json.dumps(request).encode(), **parts}
    kinds = {REQUEST_PART: "application/json"}
    pieces = []
    for name, data in content.items():
        kind = kinds.get(name, "application/octet-stream")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: {kind}\r\n\r\n'
        pieces += [head.encode(), data, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return _body(b"".join(pieces), f"multipart/form-data; boundary={boundary}")


def _body(content: bytes, media: str) -> Body:
    return Body(content, {"content-type": media, "accept": "application/msgpack"})
