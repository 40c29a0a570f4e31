"""Built engines on disk, by everything that makes one what it is. Knows no runtime.

    <graph>-<key>.json              what the engine is, what it was checked against, and the digest of its plan
    <graph>-<key>-<digest>.plan     the engine itself
    timings-<library>-....bin       what kernels took, for the next build
    choice-<key>.json               see `foreframe_engines.choice`

Every file is written whole and moved into place; the .json comes last. An entry that is not whole counts as none.
"""

import hashlib
import json
import logging
import mmap
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from foreframe_engines.errors import BundleError, RuntimeUnavailable
from foreframe_engines.runtime.parity import Parity
from foreframe_engines.runtime.session import TensorSpec
from foreframe_engines.strict_json import Json, JsonRecord, parse_json

_KEY_LENGTH, _DIGEST_LENGTH = 32, 12
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")
_RECORD_KEYS = ("key", "plan_sha256", "plan_bytes", "seconds", "inputs", "outputs", "parity")
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
    """An engine whose files are whole."""

    record: EngineRecord
    plan_path: Path

    def map_plan(self) -> mmap.mmap:
        """Map the plan into memory, to be read once."""
        with self.plan_path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class EngineCache:
    """A folder of built engines; several processes may share one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine of a key, None when there is none; one that is damaged is logged and removed."""
        path = self.folder / f"{key.stem}.json"
        if not path.exists():
            return None
        try:
            return self._read(path, key)
        except (BundleError, OSError, UnicodeDecodeError) as error:
            _log.warning("the engine in %s is refused and will be built again: %s", path, error)
            self._remove(key)
            return None

    def store(self, record: EngineRecord, plan: bytes) -> StoredEngine:
        """Write an engine in place of what the key had. Raises RuntimeUnavailable when the folder takes no files."""
        path = self._plan_path(record)
        self.write(path.name, plan)
        self.write(f"{record.key.stem}.json", _record_to_json(record).encode())
        for old in set(self.folder.glob(f"{record.key.stem}-*.plan")) - {path}:
            old.unlink(missing_ok=True)
        return StoredEngine(record, path)

    def approve(self, stored: StoredEngine, parity: Parity) -> StoredEngine:
        """Keep what an engine agreed with: from now on it may serve."""
        record = replace(stored.record, parity=parity)
        self.write(f"{record.key.stem}.json", _record_to_json(record).encode())
        return StoredEngine(record, stored.plan_path)

    def read_timings(self, key: EngineKey) -> bytes:
        """Return what kernels took in earlier builds of the library for the architecture; nothing at first."""
        path = self.folder / _timings_name(key)
        return path.read_bytes() if path.exists() else b""

    def write_timings(self, key: EngineKey, timings: bytes) -> None:
        """Keep what kernels took."""
        if timings:
            self.write(_timings_name(key), timings)

    def write(self, name: str, content: bytes) -> None:
        """Write one file of the folder whole or not at all. Raises RuntimeUnavailable when that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                file.write(content)
            os.replace(file.name, self.folder / name)  # noqa: PTH105 - Path.replace would say no more
        except OSError as error:
            raise RuntimeUnavailable(
                f"{self.folder} takes no engines ({error.strerror}); name another folder"
            ) from error

    def _read(self, path: Path, key: EngineKey) -> StoredEngine:
        record = _record_from_json(path.read_text(encoding="utf-8"), path.name)
        if record.key != key:
            raise BundleError(f"{path.name} is of another engine")
        plan_path = self._plan_path(record)
        with plan_path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.plan_sha256:
            raise BundleError(f"{plan_path.name} is not what was built")
        return StoredEngine(record, plan_path)

    def _plan_path(self, record: EngineRecord) -> Path:
        return self.folder / f"{record.key.stem}-{record.plan_sha256[:_DIGEST_LENGTH]}.plan"

    def _remove(self, key: EngineKey) -> None:
        for path in (self.folder / f"{key.stem}.json", *self.folder.glob(f"{key.stem}-*.plan")):
            path.unlink(missing_ok=True)


def _timings_name(key: EngineKey) -> str:
    parts = (key.library, key.library_version, key.cuda, key.driver, key.architecture)
    return _FORBIDDEN.sub("_", f"timings-{'-'.join(parts)}.bin")


def _record_to_json(record: EngineRecord) -> str:
    return json.dumps(asdict(record), indent=2) + "\n"


def _record_from_json(text: str, where: str) -> EngineRecord:
    record = JsonRecord(parse_json(text, where), where, _RECORD_KEYS)
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
