"""Built engines on disk, by everything that makes one what it is. Knows no runtime.

An engine is native code: only what this user built and sealed, in a folder that only this user writes, is loaded.

    <graph>-<key>.json              what the engine is, what it was checked against, and the digest of its plan
    <graph>-<key>-<digest>.plan     the engine itself
    timings-<library>-....bin       what kernels took, for the next build
    choice-<key>.json               see `foreframe_engines.choice`

Every file is written whole and moved into place; the .json comes last. An entry that is not whole counts as none.
"""

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.opened_files import MAX_TEXT_BYTES, OpenFolder
from foreframe_engines.runtime.parity import Parity
from foreframe_engines.runtime.seal import SEAL_BYTES, Seal
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.strict_json import Json, JsonRecord, parse_json

_KEY_LENGTH, _DIGEST_LENGTH = 32, 12
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")
_RECORD_KEYS = ("key", "plan_sha256", "plan_bytes", "seconds", "inputs", "outputs", "parity", "seal")
_PARITY_KEYS = ("reference", "num_runs", "worst", "share", "max_abs")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that makes an engine what it is; one difference is another engine.

    driver: empty where engines run with any. profiles: one text a bucket.
    """

    graph: str
    graph_sha256: str
    weights_sha256: str
    library: str
    library_version: str
    cuda: str
    driver: str
    architecture: str
    profiles: tuple[str, ...]
    precision: str
    flags: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the key's canonical text."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def stem(self) -> str:
        """How the files of this engine begin."""
        return f"{_FORBIDDEN.sub('_', self.graph)}-{self.digest[:_KEY_LENGTH]}"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What is known of a built engine. `parity` is None until it has been compared with a reference."""

    key: EngineKey
    plan_sha256: str
    plan_bytes: int
    seconds: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredEngine:
    """An engine that was built and sealed here; `plan` is its bytes, as they were checked."""

    record: EngineRecord
    plan_path: Path
    plan: memoryview


class EngineCache:
    """A folder of built engines; several processes of one user may share one."""

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        """Take a folder. seal: by default with this user's key."""
        self.folder = folder
        self._seal = seal or Seal()

    def find(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine of a key, None when there is none; one that is damaged or not ours is logged and removed.

        Raises RuntimeUnavailable when others may write to the folder, or the key that engines are sealed with is not
        this user's alone.
        """
        path = self.folder / f"{key.stem}.json"
        if not path.exists():
            return None
        _require_private(self.folder)
        try:
            return self._read(path.name, key)
        except (BundleError, OSError, UnicodeDecodeError) as error:
            _log.warning("the engine in %s is refused and will be built again: %s", path, error)
            self._remove(key)
            return None

    def store(self, record: EngineRecord, plan: bytes) -> StoredEngine:
        """Write an engine in place of what the key had.

        Raises RuntimeUnavailable when the folder takes no files, or as `find`.
        """
        path = self._plan_path(record)
        self.write(path.name, plan)
        self._write_record(record)
        for old in set(self.folder.glob(f"{record.key.stem}-*.plan")) - {path}:
            old.unlink(missing_ok=True)
        with OpenFolder(self.folder) as folder:
            return StoredEngine(record, path, _read_plan(folder, path.name, record))

    def approve(self, stored: StoredEngine, parity: Parity) -> StoredEngine:
        """Keep what an engine agreed with: from now on it may serve."""
        record = replace(stored.record, parity=parity)
        self._write_record(record)
        return replace(stored, record=record)

    def read_timings(self, key: EngineKey) -> bytes:
        """Return what kernels took in earlier builds of the library for the architecture; nothing at first."""
        name = _timings_name(key)
        if not (self.folder / name).exists():
            return b""
        _require_private(self.folder)
        with OpenFolder(self.folder) as folder:
            content = bytes(folder.read(name))
        timings = content[SEAL_BYTES:]
        return timings if self._seal.is_genuine(timings, content[:SEAL_BYTES]) else b""

    def write_timings(self, key: EngineKey, timings: bytes) -> None:
        """Keep what kernels took."""
        if timings:
            self.write(_timings_name(key), self._seal.sign(timings) + timings)

    def write(self, name: str, content: bytes) -> None:
        """Write one file of the folder whole or not at all. Raises RuntimeUnavailable when that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_private(self.folder)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                file.write(content)
            os.replace(file.name, self.folder / name)  # noqa: PTH105 - Path.replace would say no more
        except OSError as error:
            raise RuntimeUnavailable(
                f"{self.folder} takes no engines ({error.strerror}); name another folder"
            ) from error

    def _read(self, name: str, key: EngineKey) -> StoredEngine:
        with OpenFolder(self.folder) as folder:
            text = bytes(folder.read(name, MAX_TEXT_BYTES)).decode()
            record = self._open_record(text, name)
            if record.key != key:
                raise BundleError(f"{name} is of another engine")
            plan_path = self._plan_path(record)
            return StoredEngine(record, plan_path, _read_plan(folder, plan_path.name, record))

    def _write_record(self, record: EngineRecord) -> None:
        sealed = asdict(record) | {"seal": self._seal.sign(_canonical(record)).hex()}
        self.write(f"{record.key.stem}.json", (json.dumps(sealed, indent=2) + "\n").encode())

    def _open_record(self, text: str, where: str) -> EngineRecord:
        """Read a record. Raises BundleError when it was not sealed with this user's key."""
        fields = JsonRecord(parse_json(text, where), where, _RECORD_KEYS)
        record = _record_from_fields(fields)
        if not self._seal.is_genuine(_canonical(record), _from_hex(fields.text("seal"))):
            raise BundleError(f"{where} was not sealed with this user's key")
        return record

    def _plan_path(self, record: EngineRecord) -> Path:
        return self.folder / f"{record.key.stem}-{record.plan_sha256[:_DIGEST_LENGTH]}.plan"

    def _remove(self, key: EngineKey) -> None:
        for path in (self.folder / f"{key.stem}.json", *self.folder.glob(f"{key.stem}-*.plan")):
            path.unlink(missing_ok=True)


def _timings_name(key: EngineKey) -> str:
    parts = (key.library, key.library_version, key.cuda, key.driver, key.architecture)
    return _FORBIDDEN.sub("_", f"timings-{'-'.join(parts)}.bin")


def _require_private(folder: Path) -> None:
    """Raise RuntimeUnavailable unless only this user, or root, can write to the folder."""
    state = folder.stat()
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeUnavailable(
            f"others may write to {folder}, and engines are code; `chmod go-w` it, or name another"
        )


def _read_plan(folder: OpenFolder, name: str, record: EngineRecord) -> memoryview:
    plan = folder.read(name)
    if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
        raise BundleError(f"{name} is not what was built")
    return plan


def _canonical(record: EngineRecord) -> bytes:
    return json.dumps(asdict(record), sort_keys=True).encode()


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _record_from_fields(record: JsonRecord) -> EngineRecord:
    return EngineRecord(
        _key(record.record("key", tuple(EngineKey.__dataclass_fields__))),
        record.text("plan_sha256"),
        record.count("plan_bytes"),
        record.number("seconds"),
        _specs(record.records("inputs", ("name", "dtype", "shape"))),
        _specs(record.records("outputs", ("name", "dtype", "shape"))),
        None if record.value("parity") is None else _parity(record.record("parity", _PARITY_KEYS)),
    )


def _key(record: JsonRecord) -> EngineKey:
    values = {name: record.value(name) for name in EngineKey.__dataclass_fields__}
    lists = {name: tuple(map(str, value)) for name, value in values.items() if isinstance(value, list)}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if len(lists) + len(texts) < len(values):
        raise BundleError(f"{record.at('graph')}: the key holds other things than texts")
    return EngineKey(**texts, **lists)  # type: ignore[arg-type]


def _specs(records: Sequence[JsonRecord]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(each.text("name"), each.text("dtype"), _shape(each.value("shape"))) for each in records)


def _shape(value: Json) -> tuple[int | None, ...]:
    if not isinstance(value, list) or not all(length is None or isinstance(length, int) for length in value):
        raise BundleError("a shape is no list of lengths")
    return tuple(length if isinstance(length, int) else None for length in value)


def _parity(record: JsonRecord) -> Parity:
    names = record.text("reference"), record.count("num_runs"), record.text("worst")
    return Parity(*names, record.number("share"), record.number("max_abs"))
