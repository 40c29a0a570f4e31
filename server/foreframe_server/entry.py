"""A cached ensemble as bytes: its first members, bound to their key and signed. It knows no store.

    magic 4 · version u16 · key digest 32 · k f h w u32 each · members · HMAC-SHA256 32

All entries of a key begin alike and k has a fixed place, so a store finds the longer of two without parsing.
"""

import hashlib
import hmac
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import UInt8

from foreframe_engines import Query
from foreframe_server.known_contexts import context_digest

Members: TypeAlias = UInt8[np.ndarray, "k f h w 3"]
"""Members 0..k-1 of an ensemble, RGB 0..255, the frames in the order of the query's `frame_indices`."""

SCHEMA_VERSION: Final = 3
IDENTITY_BYTES: Final = struct.calcsize(">4sH32s")
COUNT_FORMAT: Final = ">I"
"""How k is written behind the identity; `struct` of Python and of Redis' Lua read it alike."""

_MAGIC = b"FFPR"
_HEADER = struct.Struct(">4sH32s4I")
_SIGNATURE_BYTES = hashlib.sha256().digest_size
_GROWTH = frozenset({"size", "reducer", "tolerance"})


class CorruptEntry(Exception):
    """Bytes are not the entry of this key, or were not written by a holder of the secret."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What an ensemble is stored under: SHA-256 of everything that its members depend on."""

    digest: bytes


def cache_key(query: Query, engine_fingerprint: str, tenant: str, context: bytes | None = None) -> CacheKey:
    """Digest everything that decides the members' bytes; how many there are and what becomes of them do not.

    engine_fingerprint: bundle digest, backend, precision and determinism of the engine. tenant: of the caller.
    context: the digest of the query's context, where it is known.
    """
    digest = hashlib.sha256()
    for part in _key_parts(query, engine_fingerprint, tenant, context or context_digest(query.context)):
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return CacheKey(digest.digest())


def _key_parts(query: Query, engine_fingerprint: str, tenant: str, context: bytes) -> Iterator[bytes | memoryview]:
    yield from (b"foreframe members", str(SCHEMA_VERSION).encode(), tenant.encode())
    yield from (engine_fingerprint.encode(), query.model.encode())
    for record in (query.sampling, query.ensemble):
        for name in sorted({each.name for each in fields(record)} - _GROWTH):
            yield from (name.encode(), str(getattr(record, name)).encode())
    yield ",".join(map(str, query.frame_indices)).encode()
    yield context
    yield from (query.states.dtype.str.encode(), str(query.states.shape).encode())
    yield np.ascontiguousarray(query.states).data.cast("B")


def encode_entry(key: CacheKey, members: Members, secret: bytes) -> bytes:
    """Write members as signed bytes."""
    header = _HEADER.pack(_MAGIC, SCHEMA_VERSION, key.digest, *members.shape[:-1])
    body = header + members.tobytes()
    return body + _sign(body, secret)


def decode_entry(key: CacheKey, blob: bytes, secret: bytes) -> Members:
    """Read the members of a key back; they are read-only. Raises CorruptEntry."""
    data = memoryview(blob)
    body, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
    if len(body) < _HEADER.size or not hmac.compare_digest(signature, _sign(body, secret)):
        raise CorruptEntry("the signature does not match")
    magic, version, digest, *shape = _HEADER.unpack_from(body)
    if (magic, version, digest) != (_MAGIC, SCHEMA_VERSION, key.digest):
        raise CorruptEntry("the entry belongs to another key or version")
    if 0 in shape or _HEADER.size + 3 * math.prod(shape) != len(body):
        raise CorruptEntry("the members do not have the size that the header says")
    return np.frombuffer(body, np.uint8, offset=_HEADER.size).reshape(*shape, 3)


def _sign(body: bytes | memoryview, secret: bytes) -> bytes:
    return hmac.digest(secret, body, "sha256")
