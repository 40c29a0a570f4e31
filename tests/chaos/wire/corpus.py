"""Valid requests of every route and medium that an oracle's server has, each with what its body was written from."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np
from harness.questions import CONTRACT
from PIL import Image
from wire import sockets

from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.media import Media
from foreframe_server.codec.video import encode_mp4

BOUNDARY = "cut-here-7f3a"
_RNG = np.random.default_rng(11)
_SIZE, _DIM = 8, len(CONTRACT.state.names)
_PREDICTION = "/v1/predictions"
JSON, MSGPACK = (("content-type", str(media)) for media in (Media.JSON, Media.MSGPACK))

Written = tuple[bytes, tuple[tuple[str, str], ...]]
"""A body and the headers that describe it."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A valid request. document: what `write` makes the body of; messages: what a websocket is told, as documents."""

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    document: Document | None = None
    write: Callable[[Document], Written] = lambda document: (write_document(document, Media.JSON), (JSON,))
    messages: tuple[Document, ...] = field(default=())

    def written(self, document: Document | None = None) -> Written:
        """Write the body, of another document where one is given."""
        chosen = self.document if document is None else document
        return (b"", ()) if chosen is None else self.write(chosen)

    def raw(self) -> bytes:
        """Write the whole request."""
        body, headers = self.written()
        return request_bytes(self.method, self.path, (*self.headers, *headers), body)


def request_bytes(method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """Write a request of HTTP/1.1 that says how long its body is."""
    length = [("content-length", str(len(body)))] if body or method == "POST" else []
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        *(f"{name}: {value}" for name, value in [*headers, *length]),
    ]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


def frames(count: int) -> np.ndarray:
    return _RNG.integers(0, 256, (count, _SIZE, _SIZE, 3), dtype=np.uint8)


def rows(count: int) -> np.ndarray:
    """Draw states whose knob is off."""
    states = _RNG.standard_normal((count, _DIM)).astype(np.float32)
    states[:, -2:] = 0
    return states


def picture(frame: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def observation(count: int = CONTRACT.context_frames, **clip: object) -> Document:
    clip = clip or {"encoding": "raw_rgb8", "data": frames(count), "width": _SIZE, "height": _SIZE}
    return {"cameras": {"head": clip}, "state": {"values": rows(count)}}


def prediction(**fields: object) -> Document:
    """Make a prediction of one member and one step."""
    future = {"kind": "state", "values": rows(CONTRACT.horizon)}
    sampling = {"seed": int(_RNG.integers(2**32)), "steps": 1}
    return {"observation": observation(), "future": future, "sampling": sampling, **fields}


def likelihood(**fields: object) -> Document:
    target = {"encoding": "raw_rgb8", "data": frames(2), "width": _SIZE, "height": _SIZE, "state": {"values": rows(2)}}
    return {"observation": observation(), "target": target, **fields}


def scoring(**fields: object) -> Document:
    plans = np.stack([rows(CONTRACT.horizon) for _ in range(3)])
    objectives = [{"kind": "smoothness", "weight": 1.0}, {"kind": "spread"}]
    asked = {"candidates": {"values": plans}, "objectives": objectives, "ensemble": {"size": 2}}
    return {"observation": observation(), "sampling": {"seed": 3, "steps": 1}, **asked, **fields}


def plain(value: object) -> object:
    """Turn arrays into lists and bytes into base64, for JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.tobytes()).decode() if value.dtype == np.uint8 else value.tolist()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def write_msgpack(document: Document) -> Written:
    return write_document(document, Media.MSGPACK), (MSGPACK,)


def form_writer(parts: Mapping[str, bytes]) -> Callable[[Document], Written]:
    """Return what writes a document and these parts as a form."""

    def write(document: Document) -> Written:
        named = {"request": json.dumps(document).encode(), **parts}
        pieces = [
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data + b"\r\n"
            for name, data in named.items()
        ]
        return b"".join([*pieces, f"--{BOUNDARY}--\r\n".encode()]), (
            ("content-type", f"{Media.MULTIPART}; boundary={BOUNDARY}"),
        )

    return write


def tensor_writer(tensors: Sequence[np.ndarray]) -> Callable[[Document], Written]:
    """Return what writes KServe's JSON and these tensors behind it."""

    def write(document: Document) -> Written:
        header = json.dumps(document).encode()
        body = b"".join([header, *(tensor.tobytes() for tensor in tensors)])
        length = ("Inference-Header-Content-Length", str(len(header)))
        return body, (("content-type", "application/octet-stream"), length)

    return write


def tensors() -> dict[str, np.ndarray]:
    context = CONTRACT.context_frames
    states = {"past_states": rows(context)[None], "future_states": rows(CONTRACT.horizon)[None]}
    return {"past_frames": frames(context)[None], **states}


def inference(arrays: Mapping[str, np.ndarray], *, is_binary: bool) -> Document:
    inputs = [_tensor(name, array, is_binary=is_binary) for name, array in arrays.items()]
    parameters = {"seed": 5, "steps": 1, "binary_data_output": is_binary}
    return {"id": "one", "inputs": inputs, "parameters": parameters}


def _tensor(name: str, array: np.ndarray, *, is_binary: bool) -> Document:
    datatype = "UINT8" if array.dtype == np.uint8 else "FP32"
    about: Document = {"name": name, "shape": list(array.shape), "datatype": datatype}
    if is_binary:
        return {**about, "parameters": {"binary_data_size": array.nbytes}}
    return {**about, "data": array.reshape(-1).tolist()}


def open_corpus(address: str) -> list[Sample]:
    """Make the corpus of a running server, where sessions and an observation are opened for it."""
    with httpx.Client(base_url=address, trust_env=False) as client:
        held = _post(client, "/v1/observations", {"observation": observation()})["observation_id"]
        ids = [_post(client, "/v1/sessions", {"observation": observation(), "seed": 1})["session_id"] for _ in range(2)]
    return [
        *_predictions(str(held)), *_documents(str(held)), *_sessions(*map(str, ids)), *_inferences(), *_reads(),
        *_talks()
    ]  # fmt: skip


def _post(client: httpx.Client, path: str, document: Document) -> Document:
    body, headers = write_msgpack(document)
    reply = client.post(path, content=body, headers=dict(headers))
    if reply.status_code != 200:
        raise ValueError(f"{path} answers {reply.status_code}: {reply.text}")
    return reply.json()


def _predictions(held: str) -> list[Sample]:
    pngs = [picture(frame) for frame in frames(CONTRACT.context_frames)]
    listed = {"cameras": {"head": {"encoding": "png", "frames": [base64.b64encode(each).decode() for each in pngs]}}}
    state = {"state": {"schema": CONTRACT.state.name, "values": rows(CONTRACT.context_frames).tolist()}}
    in_parts = {"cameras": {"head": {"encoding": "png", "frames": [{"$part": "a"}, {"$part": "b"}]}}, **state}
    clip = encode_mp4(frames(CONTRACT.context_frames), 10.0)
    mp4 = {"cameras": {"head": {"encoding": "mp4", "data": {"$part": "clip"}}}, **state}
    full = {
        "ensemble": {"size": 3, "reducer": "mean", "noise": "antithetic"}, "frames": [1, 4], "deadline_ms": 20_000,
        "on_deadline": "partial", "stream_id": "arm", "priority": "bulk", "client_time": 1.5, "metadata": {"run": "a"},
        "return": {"encoding": "raw", "variance": "map", "members": True}, "cache": "bypass", "model": CONTRACT.model,
    }  # fmt: skip
    accepts = (("accept", "application/msgpack"),)
    return [
        Sample("json", "POST", _PREDICTION, (), plain(prediction(observation={**listed, **state}))),
        Sample("json-full", "POST", _PREDICTION, (("x-deadline-ms", "20000"),), plain(prediction(**full))),
        Sample("msgpack", "POST", _PREDICTION, accepts, prediction(), write_msgpack),
        Sample("msgpack-full", "POST", _PREDICTION, accepts, prediction(**full), write_msgpack),
        Sample("held", "POST", _PREDICTION, (), plain({**prediction(observation_id=held), "observation": None})),
        Sample("multipart", "POST", _PREDICTION, (), plain(prediction(observation=in_parts)),
               form_writer(dict(zip("ab", pngs, strict=True)))),
        Sample("mp4", "POST", _PREDICTION, (), plain(prediction(observation=mp4)), form_writer({"clip": clip})),
        *(Sample(f"to-{media}", "POST", _PREDICTION, (("accept", str(media)),), prediction(), write_msgpack)
          for media in (Media.MP4, Media.PNG, Media.WEBP, Media.EVENTS)),
    ]  # fmt: skip


def _documents(held: str) -> list[Sample]:
    ids = {"target": {"ids": [[0, 1, 2, 3]], "state": {"values": rows(1).tolist()}}}
    check = {"values": rows(2).tolist()}
    return [
        Sample("likelihood", "POST", "/v1/likelihoods", (), likelihood(map=True), write_msgpack),
        Sample(
            "likelihood-json", "POST", "/v1/likelihoods", (), plain({**likelihood(support="top_k", top_k=2), **ids})
        ),
        Sample("score", "POST", "/v1/scores", (), scoring(), write_msgpack),
        Sample("score-json", "POST", "/v1/scores", (), plain(scoring(**{"return": {"top_n": 1}}))),
        Sample("observe", "POST", "/v1/observations", (), plain({"observation": observation(), "ttl_s": 5})),
        Sample("forget", "DELETE", f"/v1/observations/{held[::-1]}"),
        Sample("check", "POST", f"/v1/state-schemas/{CONTRACT.state.name}/check", (), check),
    ]


def _sessions(session: str, ended: str) -> list[Sample]:
    at = f"/v1/sessions/{session}"
    step = {"future": {"values": rows(2).tolist()}, "sampling": {"steps": 1}}
    return [
        Sample("session", "POST", "/v1/sessions", (), plain({"observation": observation(), "seed": 2, "ttl_s": 5})),
        Sample("step", "POST", f"{at}/steps", (), step),
        Sample("push", "POST", f"{at}/observations", (), {"observation": observation(1)}, write_msgpack),
        Sample("fork", "POST", f"{at}/forks", (), {}),
        Sample("rollback", "POST", f"{at}/rollback", (), {"step_id": 0}),
        Sample("reset", "POST", f"{at}/reset", (), {"seed": 4}),
        Sample("stand", "GET", at),
        Sample("end", "DELETE", f"/v1/sessions/{ended}"),
    ]


def _inferences() -> list[Sample]:
    arrays = tensors()
    binary, listed = (inference(arrays, is_binary=is_binary) for is_binary in (True, False))
    sequence = {**binary, "parameters": {"sequence_id": 7, "sequence_start": True, "steps": 1}}
    write = tensor_writer(list(arrays.values()))
    at = "/v2/models/world_model"
    return [
        Sample("tensors", "POST", f"{at}/infer", (), binary, write),
        Sample("tensors-json", "POST", f"{at}/versions/{CONTRACT.revision}/infer", (), listed),
        Sample("sequence", "POST", f"{at}/infer", (), sequence, write),
        Sample("shared-memory", "POST", "/v2/systemsharedmemory/region/a/register", (), {"key": "/a", "byte_size": 64}),
        Sample("index", "POST", "/v2/repository/index", (), {}),
        Sample("load", "POST", "/v2/repository/models/oracle/load", (), {}),
    ]


def _reads() -> list[Sample]:
    paths = (
        "/", "/healthz", "/readyz", "/version", "/metrics", "/docs", "/openapi.json", "/v1/limits", "/v1/models",
        f"/v1/models/{CONTRACT.model}", "/v1/state-schemas", f"/v1/state-schemas/{CONTRACT.state.name}", "/v2",
        "/v2/health/ready", "/v2/models/world_model", "/v2/models/world_model/config", "/v2/models/world_model/stats",
        "/v2/models/stats", "/admin/models", "/nowhere",
    )  # fmt: skip
    return [Sample(f"read-{path}", "GET", path) for path in paths]


def _talks() -> list[Sample]:
    robot = {"type": "predict", "request_id": "a", "progress": True, **prediction()}
    policy = {
        "observation/image": frames(CONTRACT.context_frames), "observation/state": rows(CONTRACT.context_frames),
        "actions": rows(CONTRACT.horizon), "sampling": {"seed": 7, "steps": 1},
    }  # fmt: skip
    messages = (
        robot, {"type": "score", **scoring()}, {"type": "likelihood", **likelihood()},
        {"type": "observe", "observation": observation()}, {"type": "reset", "observation": observation()},
        {"type": "cancel", "request_id": "a"}, {"type": "ping", "payload": {"a": [1, 2.5, None]}},
    )  # fmt: skip
    paths = ("/openpi/policy", "/", "/v1/realtime/robot/openpi")
    return [
        *(Sample(f"talk-{message['type']}", "GET", "/v1/realtime", sockets.UPGRADE, messages=(message,))
          for message in messages),
        Sample("talk-all", "GET", "/v1/realtime", sockets.UPGRADE, messages=messages),
        *(Sample(f"policy-{path}", "GET", path, sockets.UPGRADE, messages=(policy,)) for path in paths),
    ]  # fmt: skip
