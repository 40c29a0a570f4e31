"""A model on disk: a flat folder whose every file stands in `manifest.json` with its digest. Knows no runtime.

    manifest.json                         {"format": ..., "files": {name: {"sha256": ..., "size": ...}}}
    contract.json stats.json              what the model takes and gives, and what its training states were
    calibration.json                      optional: what spread and what surprise are usual
    *.onnx *.safetensors README.md ...    graphs, weights, whatever else the manifest lists

No links, no folders inside, no file that the manifest does not list. Every file is opened once: what was hashed and
checked by its kind is what runs.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from foreframe_engines.array_file import check_arrays
from foreframe_engines.calibration import CALIBRATION, UNCALIBRATED, Calibration, calibration_from_json
from foreframe_engines.contract_json import (
    ContractFile,
    GraphFiles,
    StateStatistics,
    contract_from_json,
    contract_to_json,
    statistics_from_json,
    statistics_to_json,
)
from foreframe_engines.errors import BundleError
from foreframe_engines.graph_file import MAX_GRAPH_BYTES, StoredGraph, check_graph
from foreframe_engines.opened_files import MAX_TEXT_BYTES, OpenFolder, is_plain_name
from foreframe_engines.strict_json import Json, JsonRecord, parse_json
from foreframe_engines.tensor_file import check_tensors
from foreframe_engines.types import Contract

FORMAT = "foreframe-bundle/1"
MANIFEST = "manifest.json"
BUILTIN = Path(__file__).parent / "bundles"

GraphName = Literal["encode", "condition", "step", "decode", "step_guided", "decode_tail"]
GRAPHS: tuple[GraphName, ...] = ("encode", "condition", "step", "decode")
"""Of the rollout model, which a bundle has when it can `predict`."""

OPTIONAL_GRAPHS: tuple[GraphName, ...] = ("step_guided", "decode_tail")
"""Of a rollout model that has guidance, and of one whose last frames can be decoded by themselves."""

LikelihoodGraphName = Literal["tokenize", "detokenize", "frame_step", "top_k"]
LIKELIHOOD_GRAPHS: tuple[LikelihoodGraphName, ...] = ("tokenize", "detokenize", "frame_step", "top_k")
"""Of the likelihood model, which a bundle has when its contract has tokens."""

MAX_FILES = 1_000

_MAX_BYTES = {"": MAX_TEXT_BYTES, ".json": MAX_TEXT_BYTES, ".md": MAX_TEXT_BYTES, ".txt": MAX_TEXT_BYTES}
_MAX_BYTES |= {".onnx": MAX_GRAPH_BYTES, ".npz": 2**30, ".safetensors": 2**43, ".weights": 2**43}
"""Every kind of file that a bundle may have, with its largest size; `.weights` are plain numbers that a graph names."""

_BUNDLE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class BundleFile:
    """One file whose bytes are what the manifest says."""

    sha256: str
    content: memoryview


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A verified model folder, open: `files` are its files' bytes, `checked` its ONNX files, both by their names.

    `digest` names its whole content: the SHA-256 of the canonical manifest.
    """

    path: Path
    contract: Contract
    statistics: StateStatistics
    graphs: GraphFiles
    digest: str
    files: Mapping[str, BundleFile]
    checked: Mapping[str, StoredGraph]
    calibration: Calibration = UNCALIBRATED

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Verify every file and read the contract. Raises BundleError naming the file or key that is wrong."""
        content = _read_folder(path)
        _require_kinds(content.files)
        statistics_text = _text(content, "stats.json")
        file = contract_from_json(_text(content, "contract.json"), statistics_text)
        _check_graph_files(content, file)
        return cls(
            path,
            file.contract,
            statistics_from_json(statistics_text),
            file.graphs,
            content.digest,
            content.files,
            _check_kinds(content.files),
            _read_calibration(content, file.contract),
        )

    def graph(self, name: GraphName | LikelihoodGraphName) -> StoredGraph:
        """Return a graph with its weights. Raises BundleError when the bundle has no such graph."""
        return self.checked[self._graph_file(name)]

    def graph_path(self, name: GraphName | LikelihoodGraphName) -> Path:
        """Return where a graph lies, for tools; what runs is `graph`. Raises BundleError as it does."""
        return self.path / self._graph_file(name)

    def _graph_file(self, name: GraphName | LikelihoodGraphName) -> str:
        file: str | None = getattr(self.graphs, name)
        if file is None:
            raise BundleError(f"contract.json: graphs: the bundle has no {name} graph")
        return file


def rollout_graph_names(graphs: GraphFiles) -> tuple[GraphName, ...]:
    """List the graphs that a rollout model has: the four, and those of the optional ones that are there."""
    return (*GRAPHS, *(name for name in OPTIONAL_GRAPHS if getattr(graphs, name) is not None))


def builtin_bundle(name: str = "eve-tabletop") -> Path:
    """Return the folder of a bundle that comes with the package. Raises BundleError when it is not there."""
    if not _BUNDLE_NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not the name of a bundle")
    folder = BUILTIN.resolve() / name.replace("-", "_")  # where a package lies may well be a link
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} holds no bundle")
    return folder


def verify_folder(path: Path) -> str:
    """Verify every file of a folder against its manifest; returns the digest that names the whole content.

    Raises BundleError naming the file that is missing, unlisted or another.
    """
    return _read_folder(path).digest


def read_bundle_file(path: Path, name: str) -> memoryview | None:
    """Return one verified file of a bundle's folder without opening the others, None when the manifest has none such.

    Raises BundleError when it is not what the manifest says.
    """
    with _open(path) as folder:
        entry = _read_manifest(folder).entries.get(name)
        if entry is None:
            return None
        file = _read_file(folder, name, entry)
    _check_kind(name, file.content)
    return file.content


def write_contract(folder: Path, contract: Contract, statistics: StateStatistics, graphs: GraphFiles) -> None:
    """Write `stats.json` and the `contract.json` bound to it. The contract's own statistics are not written."""
    statistics_text = statistics_to_json(statistics)
    (folder / "stats.json").write_text(statistics_text, encoding="utf-8")
    (folder / "contract.json").write_text(contract_to_json(contract, graphs, statistics_text), encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` over every other file of the folder. Raises BundleError for anything but plain files."""
    with _open(folder) as opened:
        contents = {name: opened.read(name) for name in sorted(opened.names() - {MANIFEST})}
    files = {name: {"sha256": _sha256(content), "size": len(content)} for name, content in contents.items()}
    text = json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Manifest:
    entries: dict[str, FileEntry]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class _Content:
    path: Path
    files: dict[str, BundleFile]
    digest: str


def _open(path: Path) -> OpenFolder:
    """Open a folder; only the package's own may be installed by hard links."""
    return OpenFolder(path, may_share_files=path.is_relative_to(BUILTIN.resolve()))


def _read_folder(path: Path) -> _Content:
    with _open(path) as folder:
        present = folder.names()
        manifest = _read_manifest(folder)
        if unlisted := sorted(present - {MANIFEST} - manifest.entries.keys()):
            raise BundleError(f"{path}: {unlisted[0]!r} is not in the manifest")
        if missing := [name for name in manifest.entries if name not in present]:
            raise BundleError(f"{path}: {missing[0]!r} is missing")
        files = {name: _read_file(folder, name, entry) for name, entry in manifest.entries.items()}
        return _Content(path, files, manifest.digest)


def _read_manifest(folder: OpenFolder) -> _Manifest:
    text = _decode(folder.read(MANIFEST, MAX_TEXT_BYTES), f"{folder.path}: {MANIFEST!r}")
    manifest = parse_json(text, MANIFEST)
    return _Manifest(_parse_manifest(manifest), hashlib.sha256(_canonical_bytes(manifest)).hexdigest())


def _read_file(folder: OpenFolder, name: str, entry: FileEntry) -> BundleFile:
    content = folder.read(name)
    if len(content) != entry.size or _sha256(content) != entry.sha256:
        raise BundleError(f"{folder.path}: {name!r} differs from the manifest")
    return BundleFile(entry.sha256, content)


def _parse_manifest(manifest: Json) -> dict[str, FileEntry]:
    record = JsonRecord(manifest, MANIFEST, ("format", "files"))
    if record.text("format") != FORMAT:
        raise BundleError(f"{record.at('format')}: {record.text('format')!r} is not {FORMAT!r}")
    files = record.value("files")
    if not isinstance(files, dict):
        raise BundleError(f"{record.at('files')}: expected an object")
    if len(files) > MAX_FILES:
        raise BundleError(f"{record.at('files')}: {len(files)} files; a bundle has at most {MAX_FILES}")
    return {name: _parse_entry(name, entry) for name, entry in files.items()}


def _parse_entry(name: str, entry: Json) -> FileEntry:
    where = f"{MANIFEST}: files: {name!r}"
    if not is_plain_name(name) or name == MANIFEST:
        raise BundleError(f"{where}: not the name of a file of this folder")
    record = JsonRecord(entry, where, ("sha256", "size"))
    digest, size = record.text("sha256"), record.value("size")
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{record.at('sha256')}: expected 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BundleError(f"{record.at('size')}: expected a number of bytes")
    return FileEntry(digest, size)


def _require_kinds(files: Mapping[str, BundleFile]) -> None:
    for name, file in files.items():
        kind = Path(name).suffix
        if kind not in _MAX_BYTES:
            raise BundleError(
                f"{name!r} is not a kind of file that a bundle has: {', '.join(filter(None, _MAX_BYTES))}"
            )
        if len(file.content) > _MAX_BYTES[kind]:
            raise BundleError(f"{name!r} has {len(file.content)} bytes; at most {_MAX_BYTES[kind]} are read")


def _check_kinds(files: Mapping[str, BundleFile]) -> dict[str, StoredGraph]:
    """Check what libraries will read; returns the graphs."""

    def find(name: str) -> memoryview | None:
        return files[name].content if name in files else None

    for name, file in files.items():
        _check_kind(name, file.content)
    return {name: check_graph(name, file.content, find) for name, file in files.items() if name.endswith(".onnx")}


def _check_kind(name: str, content: memoryview) -> None:
    if name.endswith(".safetensors"):
        check_tensors(content, name)
    elif name.endswith(".npz"):
        check_arrays(content, name)


def _check_graph_files(content: _Content, file: ContractFile) -> None:
    for graph, name in asdict(file.graphs).items():
        if name is None:  # the contract has no use for it
            continue
        if name not in content.files or not name.endswith(".onnx"):
            raise BundleError(f"contract.json: graphs: {graph}: {name!r} is not a file of the bundle")


def _read_calibration(content: _Content, contract: Contract) -> Calibration:
    if CALIBRATION not in content.files:
        return UNCALIBRATED
    calibration = calibration_from_json(_text(content, CALIBRATION))
    if calibration.surprise is not None and contract.tokens is None:
        raise BundleError(f"{CALIBRATION}: surprise: the bundle has no likelihood model")
    if calibration.spread is not None and "predict" not in contract.capabilities:
        raise BundleError(f"{CALIBRATION}: spread: the bundle predicts nothing")
    if calibration.spread is not None and calibration.spread.num_frames != contract.horizon:
        raise BundleError(f"{CALIBRATION}: spread: scales: expected {contract.horizon} numbers, one a frame")
    return calibration


def _text(content: _Content, name: str) -> str:
    where = f"{content.path}: {name!r}"
    if name not in content.files:
        raise BundleError(f"{where} cannot be read")
    return _decode(content.files[name].content, where)


def _decode(content: memoryview, where: str) -> str:
    try:
        return bytes(content).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{where} is not UTF-8 text") from error


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical_bytes(manifest: Json) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
