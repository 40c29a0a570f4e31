"""Seeded damage to valid requests: to bytes, structure, headers, lengths, encodings, numbers and websocket frames."""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from wire import sockets
from wire.corpus import Sample, request_bytes
from wire.verdicts import MARKER

from foreframe_server.codec.documents import Document, write_document
from foreframe_server.codec.media import Media

_PIECES = (
    b"\0", b"\r\n\r\n", b"\r\n", b"\n", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\\ud800", b"%00", b"%2e%2e/",
    b"../",
    b"[" * 60, b'{"a":' * 12, b"9" * 400, b"-0", b"1e999", b"NaN", b'"', b"\\", b"\x80" * 9, b"\xc7\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", MARKER.encode(), MARKER.encode(), b"__ndarray__", b"$part", b"--cut-here-7f3a",
    b"--cut-here-7f3a--\r\n",
)  # fmt: skip
_NUMBERS = (
    "-1", "0", "-0", "0.0", "1e999", "-1e999", "1e-400", "NaN", "Infinity", "-Infinity", "9007199254740993",
    "2147483648",
    "18446744073709551616", "9" * 19, "9" * 400, "1.5", "true", "null", '"1"', "1_0", "0x10", "01", "+1", "1e3", "[]",
)  # fmt: skip
_VALUES = (
    MARKER, MARKER, None, True, -1, 0, 2**31, 2**53, 2**63 - 1, 1.5, 1e308, -1e-320, "", "\0", MARKER, "ü\U0001f916",
    [], [[]], [None] * 20,
    {}, {MARKER: MARKER}, [[[[[[[[[0]]]]]]]]], "A" * 3000, {"$part": "a"}, {"__ndarray__": True},
    {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2**31]},
    {"__ndarray__": True, "data": b"\0" * 8, "dtype": "|O", "shape": [1]},
)  # fmt: skip
_BINARY_VALUES = (float("nan"), float("inf"), b"\xff", np.zeros(3, np.float16), np.full((4, 4), np.nan), b"")
_HEADERS = (
    ("content-encoding", "gzip"), ("content-encoding", "deflate"), ("transfer-encoding", "chunked"), ("host", "b"),
    ("transfer-encoding", "gzip, chunked"), ("content-type", "application/json"), ("content-type", "text/plain"),
    ("content-type", "application/msgpack"), ("content-type", "multipart/form-data"), ("accept", "text/html"),
    ("content-type", "multipart/form-data; boundary=" + "b" * 300), ("content-type",
    "application/json; charset=utf-16"),
    ("expect", "100-continue"), ("expect", MARKER), ("x-deadline-ms", "-1"), ("x-deadline-ms", "9" * 30),
    ("x-request-id", MARKER + "\x7f"), ("x-request-id", "a" * 5000), ("traceparent", MARKER), ("range", "bytes=0-1"),
    ("accept", "*/*;q=" + MARKER), ("accept", "a/b," * 200), ("authorization", "Bearer " + MARKER), ("cookie", "a=b"),
    ("inference-header-content-length", "-1"), ("inference-header-content-length", "9" * 20), ("origin", "http://b"),
    ("inference-header-content-length", "1"), ("upgrade", "h2c"), ("connection", "upgrade"), ("te", "trailers"),
    ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-host", MARKER), ("x-http-method-override", "DELETE"), ("x",
    "a" * 17_000),
    ("if-none-match", "*"), ("sec-websocket-key", MARKER), ("sec-websocket-protocol", MARKER), (MARKER, "\x00"), ("",
    "a"),
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", MARKER)
_PATHS = (
    "/",
    "//",
    "/..;/admin",
    "/v1/%2e%2e/admin",
    "/v1/models/%00",
    "/v1/models/" + "a" * 300,
    "*",
    "http://a/v1",
    "/\\",
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_OPCODES = (0x00, 0x01, 0x02, 0x03, 0x08, 0x0B, 0x80, 0x81, 0x83, 0x88, 0x89, 0x8A, 0xC2, 0xA2, 0x92, 0xFF)


@dataclass(frozen=True)
class Mutant:
    """What is sent: a request, and frames when it becomes a websocket. kind: how it was damaged."""

    kind: str
    sample: str
    data: bytes
    frames: tuple[bytes, ...] = ()


def mutate(rng: random.Random, corpus: Sequence[Sample]) -> Mutant:
    """Damage one request of the corpus in one of the ways that fit it."""
    sample = rng.choice(corpus)
    if sample.messages and rng.random() < 0.75:
        kind, harm = rng.choice(_FRAME_HARMS)
        return Mutant(kind, sample.name, sample.raw(), harm(rng, sample))
    harms = [each for each in _HARMS if sample.document is not None or not each[0].startswith("body")]
    kind, damage = rng.choice(harms)
    return Mutant(kind, sample.name, damage(rng, sample), _frames(sample))


def _frames(sample: Sample) -> tuple[bytes, ...]:
    return tuple(sockets.frame(sockets.BINARY, _pack(message)) for message in sample.messages)


def _pack(document: Document) -> bytes:
    return write_document(document, Media.MSGPACK)


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, double, overwrite or insert a few bytes."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 1, 2, 8, 64)))
        piece = data[start:stop]
        change = rng.choice((b"", piece * 2, rng.choice(_PIECES), rng.randbytes(len(piece)), _flip(rng, piece)))
        data = data[:start] + change + data[stop:]
    return data


def _flip(rng: random.Random, piece: bytes) -> bytes:
    return bytes(byte ^ (1 << rng.randrange(8)) for byte in piece)


def _with_body(sample: Sample, body: bytes) -> bytes:
    return request_bytes(sample.method, sample.path, (*sample.headers, *sample.written()[1]), body)


def _with_headers(sample: Sample, headers: Sequence[tuple[str, str]]) -> bytes:
    return request_bytes(sample.method, sample.path, headers, sample.written()[0])


def _all_bytes(rng: random.Random, sample: Sample) -> bytes:
    return damage_bytes(rng, sample.raw())


def _head_bytes(rng: random.Random, sample: Sample) -> bytes:
    head, _, body = sample.raw().partition(b"\r\n\r\n")
    return damage_bytes(rng, head) + b"\r\n\r\n" + body


def _body_bytes(rng: random.Random, sample: Sample) -> bytes:
    return _with_body(sample, damage_bytes(rng, sample.written()[0]))


def _cut_off(rng: random.Random, sample: Sample) -> bytes:
    body = sample.written()[0]
    return _with_body(sample, body[: rng.randrange(len(body) + 1)])


def _structure(rng: random.Random, sample: Sample) -> bytes:
    is_binary = ("content-type", str(Media.MSGPACK)) in sample.written()[1]
    document = damage_document(rng, sample.document or {}, _VALUES + _BINARY_VALUES if is_binary else _VALUES)
    try:
        body, headers = sample.write(document)
    except (TypeError, ValueError):  # what JSON cannot say
        return damage_bytes(rng, sample.raw())
    return request_bytes(sample.method, sample.path, (*sample.headers, *headers), body)


def damage_document(rng: random.Random, document: Document, values: Sequence[object]) -> Document:
    """Replace, remove or add one or two values somewhere."""
    document = deepcopy(document)
    for _ in range(rng.randint(1, 2)):
        if not document:
            return {MARKER: deepcopy(rng.choice(values))}
        place, key = _find_place(rng, document)
        lot = rng.random()
        if lot < 0.7:
            place[key] = deepcopy(rng.choice(values))
        elif lot < 0.85:
            del place[key]
        elif isinstance(place, dict):
            place[rng.choice((MARKER, "model", "deadline_ms", "parameters", "$part"))] = deepcopy(rng.choice(values))
        else:
            place.append(deepcopy(rng.choice(values)))
    return document


def _find_place(rng: random.Random, place: dict | list) -> tuple[dict | list, object]:
    while True:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            return place, key
        place = place[key]


def _numbers(rng: random.Random, sample: Sample) -> bytes:
    body = sample.written()[0]
    found = list(_NUMBER.finditer(body))
    for match in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), key=lambda each: -each.start()):
        body = body[: match.start()] + rng.choice(_NUMBERS).encode() + body[match.end() :]
    return _with_body(sample, body)


def _header(rng: random.Random, sample: Sample) -> bytes:
    headers = [*sample.headers, *sample.written()[1]]
    lot = rng.random()
    if lot < 0.3 and headers:
        headers.pop(rng.randrange(len(headers)))
    elif lot < 0.4 and headers:
        headers.append(rng.choice(headers))
    elif lot < 0.5 and headers:
        place = rng.randrange(len(headers))
        headers[place] = (headers[place][0], damage_bytes(rng, headers[place][1].encode()).decode("latin-1"))
    else:
        headers.insert(rng.randrange(len(headers) + 1), rng.choice(_HEADERS))
    return _with_headers(sample, headers * (40 if rng.random() < 0.03 else 1))


def _target(rng: random.Random, sample: Sample) -> bytes:
    path = rng.choice(_PATHS) if rng.random() < 0.5 else damage_bytes(rng, sample.path.encode()).decode("latin-1")
    method = rng.choice(_METHODS) if rng.random() < 0.5 else sample.method
    query = rng.choice(("", "", f"?a={MARKER}", "?" + "a" * 5000, "?%zz=%ff"))
    body, headers = sample.written()
    return request_bytes(method, path + query, (*sample.headers, *headers), body)


def _length(rng: random.Random, sample: Sample) -> bytes:
    raw, size = sample.raw(), len(sample.written()[0])
    wrong = rng.choice((size - 1, size + 1, size * 2, 0, -1, 10**18, "", "+4", f"{size}, {size}", f"0{size}", MARKER))
    said = f"content-length: {wrong}".encode()
    if b"content-length" not in raw:
        return raw.replace(b"\r\n", b"\r\n" + said + b"\r\n", 1)
    return re.sub(rb"content-length: \d+", said, raw)


def _chunks(rng: random.Random, sample: Sample) -> bytes:
    body, headers = sample.written()
    lines = [f"POST {sample.path} HTTP/1.1", "host: localhost", "transfer-encoding: chunked"]
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in (*sample.headers, *headers)), "", ""])
    pieces, size = [], rng.choice((1, 7, 500, 10**6))
    for start in range(0, min(len(body), 500 * size), size):
        piece = body[start : start + size]
        pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    chunked = b"".join([*pieces, b"0\r\n\r\n"])
    return head.encode() + (damage_bytes(rng, chunked) if rng.random() < 0.7 else chunked)


def _encoding(rng: random.Random, sample: Sample) -> bytes:
    body, headers = sample.written()
    text = body.decode("latin-1")
    other = rng.choice(
        (
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + body,
            text.encode("utf-32"),
            zlib.compress(body),
            body[::-1],
            body * 2,
        )
    )
    said = rng.choice(((), (("content-encoding", "gzip"),), (("content-encoding", "identity"),)))
    return request_bytes(sample.method, sample.path, (*sample.headers, *headers, *said), other)


def _other_media(rng: random.Random, sample: Sample) -> bytes:
    kinds = (
        Media.JSON,
        Media.MSGPACK,
        Media.MULTIPART,
        "application/octet-stream",
        "application/x-msgpack",
        "text/plain",
    )
    headers = (("content-type", str(rng.choice(kinds))),)
    return request_bytes(sample.method, sample.path, (*sample.headers, *headers), sample.written()[0])


def _two_at_once(rng: random.Random, sample: Sample) -> bytes:
    return sample.raw() + damage_bytes(rng, sample.raw())


def _keys_twice(rng: random.Random, sample: Sample) -> bytes:
    try:
        text = json.dumps(sample.document)
    except TypeError:
        return damage_bytes(rng, sample.raw())
    return request_bytes("POST", sample.path, (*sample.headers, ("content-type", "application/json")),
                         b"{%b,%b" % (text[1:-1].encode(), text[1:].encode()))  # fmt: skip


_HARMS: tuple[tuple[str, Callable[[random.Random, Sample], bytes]], ...] = (
    ("bytes", _all_bytes), ("head bytes", _head_bytes), ("body bytes", _body_bytes), ("body cut", _cut_off),
    ("body structure", _structure), ("body structure again", _structure), ("body numbers", _numbers), ("header",
    _header),
    ("target", _target), ("length", _length), ("body chunks", _chunks), ("body encoding", _encoding),
    ("body media", _other_media), ("two at once", _two_at_once), ("body keys twice", _keys_twice),
)  # fmt: skip


def _frame_bytes(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    return tuple(damage_bytes(rng, each) for each in _frames(sample))


def _payload_bytes(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    return tuple(sockets.frame(sockets.BINARY, damage_bytes(rng, _pack(each))) for each in sample.messages)


def _payload_structure(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    values = _VALUES + _BINARY_VALUES
    return tuple(sockets.frame(sockets.BINARY, _pack(damage_document(rng, each, values))) for each in sample.messages)


def _frame_heads(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    payload = _pack(sample.messages[0])
    lengths = (None, None, 0, len(payload) - 1, len(payload) + 1, 125, 65_535, 2**40, 2**63 - 1)
    lie = sockets.frame(sockets.BINARY, payload, first=rng.choice(_OPCODES), said_length=rng.choice(lengths))
    return rng.choice(((lie,), (lie, lie), (*_frames(sample), lie), (lie, *_frames(sample))))


def _controls(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    code = struct.pack(">H", rng.choice((0, 999, 1000, 1005, 1006, 1015, 2999, 5000)))
    odd = (
        sockets.frame(sockets.CLOSE, code + MARKER.encode()), sockets.frame(sockets.CLOSE, b"\x03"),
        sockets.frame(sockets.CLOSE, code + b"\xff\xff"), sockets.frame(sockets.PING, b"a" * 126),
        sockets.frame(sockets.PONG, b"unasked"), sockets.frame(sockets.TEXT, b"\xff\xff"),
        sockets.frame(sockets.TEXT, MARKER.encode()), sockets.frame(sockets.BINARY, b""), rng.randbytes(40),
        sockets.frame(sockets.BINARY, b"a", first=0x02) + sockets.frame(sockets.PING, b"") * 3,
        sockets.frame(sockets.CONTINUATION, b"a", first=0x00) * 3,
    )  # fmt: skip
    return tuple(rng.sample([*_frames(sample), *rng.sample(odd, 2)], 2))


def _in_pieces(rng: random.Random, sample: Sample) -> tuple[bytes, ...]:
    payload, size = _pack(sample.messages[0]), rng.choice((7, 100, 1000))
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    last = len(pieces) - 1
    return tuple(
        sockets.frame(
            0, piece, first=(0x80 if place == last else 0) | (sockets.CONTINUATION if place else sockets.BINARY)
        )
        for place, piece in enumerate(pieces)
    )


_FRAME_HARMS: tuple[tuple[str, Callable[[random.Random, Sample], tuple[bytes, ...]]], ...] = (
    ("frame bytes", _frame_bytes), ("payload bytes", _payload_bytes), ("payload structure", _payload_structure),
    ("frame heads", _frame_heads), ("control frames", _controls), ("frame pieces", _in_pieces),
)  # fmt: skip
