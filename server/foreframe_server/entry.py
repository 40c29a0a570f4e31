"""One cached prediction as bytes: framed, bound to its key and signed. It knows no store.

    magic 4 · version u16 · key digest 32 · header length u32 · header JSON · arrays · HMAC-SHA256 32

The signature covers everything before it and is checked before anything is parsed.
"""

import hashlib
import hmac
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from foreframe_engines import Prediction, Query

SCHEMA_VERSION = 1

_MAGIC = b"FFPR"
_PREFIX = struct.Struct(">4sH32sI")
_SIGNATURE_BYTES = hashlib.sha256().digest_size
_DTYPES: Mapping[str, np.dtype[np.uint8] | np.dtype[np.float32]] = {
    "frames": np.dtype(np.uint8),
    "members": np.dtype(np.uint8),
    "variance": np.dtype(np.float32),
}


class CorruptEntry(Exception):
    """Bytes are not the entry of this key, or were not written by a holder of the secret."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What a prediction is stored under: SHA-256 of everything that it depends on."""

    digest: bytes


def cache_key(query: Query, engine_fingerprint: str, tenant: str = "") -> CacheKey:
    """Digest everything that decides a prediction's bytes; who asks, how urgently and in which stream do not.

    engine_fingerprint: bundle digest, backend, precision and determinism of the engine.
    """
    digest = hashlib.sha256()
    for part in _key_parts(query, engine_fingerprint, tenant):
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return CacheKey(digest.digest())


def _key_parts(query: Query, engine_fingerprint: str, tenant: str) -> Iterator[bytes]:
    yield from (b"foreframe prediction", str(SCHEMA_VERSION).encode(), tenant.encode())
    yield from (engine_fingerprint.encode(), query.model.encode())
    for record in (query.sampling, query.ensemble):
        for each in fields(record):
            yield from (each.name.encode(), str(getattr(record, each.name)).encode())
    yield ",".join(map(str, query.frame_indices)).encode()
    for array in (query.context, query.states):
        yield from (array.dtype.str.encode(), str(array.shape).encode(), array.tobytes())


def encode_entry(key: CacheKey, prediction: Prediction, secret: bytes) -> bytes:
    """Write a prediction as signed bytes."""
    arrays = {name: np.ascontiguousarray(getattr(prediction, name), dtype) for name, dtype in _DTYPES.items()}
    header = json.dumps(
        {
            "shapes": {name: array.shape for name, array in arrays.items()},
            "spread_per_frame": prediction.spread_per_frame,
        }
    ).encode()
    prefix = _PREFIX.pack(_MAGIC, SCHEMA_VERSION, key.digest, len(header))
    body = b"".join((prefix, header, *(array.tobytes() for array in arrays.values())))
    return body + _sign(body, secret)


def decode_entry(key: CacheKey, query: Query, blob: bytes, secret: bytes) -> Prediction:
    """Read the prediction of a query back. Raises CorruptEntry."""
    body, signature = blob[:-_SIGNATURE_BYTES], blob[-_SIGNATURE_BYTES:]
    if len(body) < _PREFIX.size or not hmac.compare_digest(signature, _sign(body, secret)):
        raise CorruptEntry("the signature does not match")
    magic, version, digest, header_bytes = _PREFIX.unpack_from(body)
    if (magic, version, digest) != (_MAGIC, SCHEMA_VERSION, key.digest):
        raise CorruptEntry("the entry belongs to another key or version")
    try:
        return _parse(query, memoryview(body)[_PREFIX.size :], header_bytes)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptEntry("the entry cannot be read") from error


def _parse(query: Query, data: memoryview, header_bytes: int) -> Prediction:
    header = json.loads(bytes(data[:header_bytes]))
    arrays = _read_arrays(data[header_bytes:], header["shapes"])
    return Prediction(
        frame_indices=query.frame_indices,
        spread_per_frame=tuple(header["spread_per_frame"]),
        sampling=query.sampling,
        ensemble=query.ensemble,
        **arrays,
    )


def _read_arrays(data: memoryview, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    arrays, offset = {}, 0
    for name, dtype in _DTYPES.items():
        size = math.prod(shapes[name])
        arrays[name] = np.frombuffer(data, dtype, size, offset).reshape(shapes[name])
        offset += size * dtype.itemsize
    return arrays


def _sign(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, body, "sha256")
