"""Keys of callers: what a file of them says, and which one a caller's text names. It knows no requests.

A caller holds `id.secret`; the file holds the id and the secret's SHA-256, so that reading the file opens nothing.
"""

import hashlib
import hmac
import json
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeAlias

ID: Final = r"[A-Za-z0-9_-]{1,64}"
TENANT: Final = r"[A-Za-z0-9._-]{1,64}"
MAX_FILE_BYTES: Final = 2**20

_TOKEN = re.compile(rf"({ID})\.([A-Za-z0-9_-]{{16,128}})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECRET_BYTES = 32
_MAX_NOTE = 200
_VERSION = 1
_NOBODY = hashlib.sha256(b"the secret of no key").digest()

Record: TypeAlias = Mapping[str, object]
"""A key as the file has it."""


class Scope(StrEnum):
    """What a key may be used for."""

    PREDICT = "predict"
    LIKELIHOOD = "likelihood"
    ADMIN = "admin"
    METRICS = "metrics"


class KeyFileError(ValueError):
    """A file of keys cannot be used; the message is one line for a person and holds no secret."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Device time that a key may use: so many step-milliseconds a second, and so many at once."""

    step_ms_per_s: float
    burst_step_ms: float


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `digest` is its secret's SHA-256; `expires` has a time zone."""

    id: str
    digest: bytes
    tenant: str
    scopes: frozenset[Scope]
    expires: datetime | None = None
    quota: Quota | None = None
    note: str = ""

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True, slots=True)
class Minted:
    """A new key, and the text that its caller sends, which is nowhere else."""

    key: Key
    token: str


class KeyRing:
    """The keys that are known, by their ids."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: str) -> Key | None:
        """Return the key that a caller's text proves, expired or not; the time it takes tells nothing of secrets."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        key = self._keys.get(match[1])
        expected = _NOBODY if key is None else key.digest
        is_right = hmac.compare_digest(hashlib.sha256(match[2].encode("ascii")).digest(), expected)
        return key if is_right else None

    def has(self, key: Key) -> bool:
        """Whether a key that was found before is still what its id names."""
        return self._keys.get(key.id) == key


def mint_key(
    key_id: str | None,
    tenant: str,
    scopes: Iterable[Scope],
    *,
    expires: datetime | None = None,
    quota: Quota | None = None,
    note: str = "",
) -> Minted:
    """Make a key with a secret of 32 random bytes. key_id: None draws one."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    digest = hashlib.sha256(secret.encode("ascii")).digest()
    key_id = key_id or f"ff-{secrets.token_hex(6)}"
    return Minted(Key(key_id, digest, tenant, frozenset(scopes), expires, quota, note), f"{key_id}.{secret}")


def write_keys(keys: Iterable[Key]) -> str:
    """Write keys as the text of a file."""
    return json.dumps({"version": _VERSION, "keys": [key_record(key) for key in keys]}, indent=1) + "\n"


def key_record(key: Key) -> Record:
    """Write a key as the file has it."""
    record: dict[str, object] = {
        "id": key.id,
        "sha256": key.digest.hex(),
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
    }
    if key.expires is not None:
        record["expires"] = key.expires.isoformat()
    if key.quota is not None:
        record["step_ms_per_s"], record["burst_step_ms"] = key.quota.step_ms_per_s, key.quota.burst_step_ms
    if key.note:
        record["note"] = key.note
    return record


def parse_keys(text: str) -> tuple[Key, ...]:
    """Read the text of a file. Raises KeyFileError, which names the key and the field that is wrong."""
    keys = tuple(_parse_key(index, record) for index, record in enumerate(_records(text)))
    if len({key.id for key in keys}) < len(keys):
        raise KeyFileError("two keys have the same id")
    return keys


def _records(text: str) -> list[object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeyFileError("is not JSON") from error
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise KeyFileError(f"is not a file of keys of version {_VERSION}")
    records = document.get("keys")
    if not isinstance(records, list):
        raise KeyFileError("has no list `keys`")
    return records


def _parse_key(index: int, record: object) -> Key:
    if not isinstance(record, dict) or record.keys() - _FIELDS:
        raise KeyFileError(f"key {index}: is not made of {', '.join(sorted(_FIELDS))}")
    try:
        return Key(
            id=_text(record, "id", re.compile(ID)),
            digest=bytes.fromhex(_text(record, "sha256", _DIGEST)),
            tenant=_text(record, "tenant", re.compile(TENANT)),
            scopes=_scopes(record),
            expires=_expires(record),
            quota=_quota(record),
            note=_text({"note": "", **record}, "note", re.compile(rf"[^\n]{{0,{_MAX_NOTE}}}")),
        )
    except KeyFileError as error:
        raise KeyFileError(f"key {index}: {error}") from error


_FIELDS = frozenset({"id", "sha256", "tenant", "scopes", "expires", "step_ms_per_s", "burst_step_ms", "note"})


def _text(record: Record, name: str, pattern: re.Pattern[str]) -> str:
    value = record.get(name)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise KeyFileError(f"{name} is not a text that matches {pattern.pattern}")
    return value


def _scopes(record: Record) -> frozenset[Scope]:
    names = record.get("scopes")
    if not isinstance(names, list) or not names:
        raise KeyFileError("scopes is not a list of at least one")
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError as error:
        raise KeyFileError(f"scopes are {', '.join(Scope)}") from error


def _expires(record: Record) -> datetime | None:
    value = record.get("expires")
    if value is None:
        return None
    try:
        return parse_time(str(value))
    except ValueError as error:
        raise KeyFileError("expires is not a time with a zone, such as 2030-01-31T12:00:00Z") from error


def parse_time(text: str) -> datetime:
    """Read a time of ISO 8601. Raises ValueError when it is none, or has no zone."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("the time has no zone")
    return time.astimezone(UTC)


def _quota(record: Record) -> Quota | None:
    rate, burst = record.get("step_ms_per_s"), record.get("burst_step_ms")
    if rate is None and burst is None:
        return None
    return Quota(_positive("step_ms_per_s", rate), _positive("burst_step_ms", burst))


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise KeyFileError(f"{name} is not a positive number; a quota needs step_ms_per_s and burst_step_ms")
    return float(value)
