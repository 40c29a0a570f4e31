"""A model on disk: a flat folder whose every file stands in `manifest.json` with its digest. Knows no runtime.

    manifest.json                         {"format": ..., "files": {name: {"sha256": ..., "size": ...}}}
    contract.json stats.json              what the model takes and gives, and what its training states were
    calibration.json                      optional: what surprise is usual, of a likelihood model
    *.onnx *.safetensors README.md ...    graphs, weights, whatever else the manifest lists

No symlinks, no folders inside, no file that the manifest does not list.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from foreframe_engines.calibration import CALIBRATION, Calibration, calibration_from_json
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
from foreframe_engines.strict_json import Json, JsonRecord, parse_json
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

_BUNDLE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A verified model folder. `digest` names its whole content: the SHA-256 of the canonical manifest."""

    path: Path
    contract: Contract
    statistics: StateStatistics
    graphs: GraphFiles
    digest: str
    calibration: Calibration | None = None

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Verify every file and read the contract. Raises BundleError naming the file or key that is wrong."""
        digest = verify_folder(path)
        statistics_text = _read_text(path, "stats.json")
        file = contract_from_json(_read_text(path, "contract.json"), statistics_text)
        _check_graph_files(path, file)
        statistics = statistics_from_json(statistics_text)
        return cls(path, file.contract, statistics, file.graphs, digest, _read_calibration(path, file.contract))

    def graph_path(self, name: GraphName | LikelihoodGraphName) -> Path:
        """Return where a graph lies. Raises BundleError when the bundle has no such graph."""
        file: str | None = getattr(self.graphs, name)
        if file is None:
            raise BundleError(f"contract.json: graphs: the bundle has no {name} graph")
        return self.path / file


def rollout_graph_names(graphs: GraphFiles) -> tuple[GraphName, ...]:
    """List the graphs that a rollout model has: the four, and those of the optional ones that are there."""
    return (*GRAPHS, *(name for name in OPTIONAL_GRAPHS if getattr(graphs, name) is not None))


def builtin_bundle(name: str = "eve-tabletop") -> Path:
    """Return the folder of a bundle that comes with the package. Raises BundleError when it is not there."""
    if not _BUNDLE_NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not the name of a bundle")
    folder = BUILTIN / name.replace("-", "_")
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} holds no bundle")
    return folder


def verify_folder(path: Path) -> str:
    """Verify every file of a folder against its manifest; returns the digest that names the whole content.

    Raises BundleError naming the file that is missing, unlisted or another.
    """
    manifest = parse_json(_read_text(path, MANIFEST), MANIFEST)
    _verify_files(path, _parse_manifest(manifest))
    return hashlib.sha256(_canonical_bytes(manifest)).hexdigest()


def write_contract(folder: Path, contract: Contract, statistics: StateStatistics, graphs: GraphFiles) -> None:
    """Write `stats.json` and the `contract.json` bound to it. The contract's own statistics are not written."""
    statistics_text = statistics_to_json(statistics)
    (folder / "stats.json").write_text(statistics_text, encoding="utf-8")
    (folder / "contract.json").write_text(contract_to_json(contract, graphs, statistics_text), encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` over every other file of the folder. Raises BundleError for anything but plain files."""
    names = sorted(_file_names(folder) - {MANIFEST})
    files = {name: {"sha256": _sha256(folder / name), "size": (folder / name).stat().st_size} for name in names}
    text = json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _parse_manifest(manifest: Json) -> dict[str, FileEntry]:
    record = JsonRecord(manifest, MANIFEST, ("format", "files"))
    if record.text("format") != FORMAT:
        raise BundleError(f"{record.at('format')}: {record.text('format')!r} is not {FORMAT!r}")
    files = record.value("files")
    if not isinstance(files, dict):
        raise BundleError(f"{record.at('files')}: expected an object")
    return {name: _parse_entry(name, entry) for name, entry in files.items()}


def _parse_entry(name: str, entry: Json) -> FileEntry:
    where = f"{MANIFEST}: files: {name!r}"
    if not _is_plain_name(name) or name == MANIFEST:
        raise BundleError(f"{where}: not the name of a file of this folder")
    record = JsonRecord(entry, where, ("sha256", "size"))
    digest, size = record.text("sha256"), record.value("size")
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{record.at('sha256')}: expected 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BundleError(f"{record.at('size')}: expected a number of bytes")
    return FileEntry(digest, size)


def _is_plain_name(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & {"/", "\\", "\0", ":"}


def _verify_files(folder: Path, entries: dict[str, FileEntry]) -> None:
    present = _file_names(folder) - {MANIFEST}
    if unlisted := sorted(present - entries.keys()):
        raise BundleError(f"{folder}: {unlisted[0]!r} is not in the manifest")
    for name, entry in entries.items():
        if name not in present:
            raise BundleError(f"{folder}: {name!r} is missing")
        if (folder / name).stat().st_size != entry.size or _sha256(folder / name) != entry.sha256:
            raise BundleError(f"{folder}: {name!r} differs from the manifest")


def _file_names(folder: Path) -> set[str]:
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{folder}: {path.name!r} is not a plain file")
    return {path.name for path in folder.iterdir()}


def _check_graph_files(folder: Path, file: ContractFile) -> None:
    for graph, name in asdict(file.graphs).items():
        if name is None:  # the contract has no use for it
            continue
        if not _is_plain_name(name) or not (folder / name).is_file():
            raise BundleError(f"contract.json: graphs: {graph}: {name!r} is not a file of the bundle")


def _read_calibration(folder: Path, contract: Contract) -> Calibration | None:
    if not (folder / CALIBRATION).exists():
        return None
    if contract.tokens is None:
        raise BundleError(f"{CALIBRATION}: the bundle has no likelihood model")
    return calibration_from_json(_read_text(folder, CALIBRATION))


def _read_text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_bytes().decode()
    except OSError as error:
        raise BundleError(f"{folder}: {name!r} cannot be read") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder}: {name!r} is not UTF-8 text") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical_bytes(manifest: Json) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
