"""Models on disk that may be loaded: `<name>/<version>/` bundles and `<name>/adapters/*.safetensors`.

Names are found by looking, never by joining what a request says to a path. Links are passed over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from foreframe_engines.bundle import MANIFEST
from foreframe_server.errors import Reason, UnknownModel
from foreframe_server.settings import SettingsError

ADAPTERS: Final = "adapters"
_SUFFIX: Final = ".safetensors"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model's versions, oldest first, and adapters, and where each lies."""

    name: str
    versions: dict[str, Path]
    adapters: dict[str, Path]

    @property
    def newest(self) -> str:
        """The version that is loaded where none is named."""
        return list(self.versions)[-1]

    def version_path(self, version: str) -> Path:
        """Return a version's bundle. Raises UnknownModel."""
        return _pick(self.versions, version, "version")

    def adapter_path(self, adapter: str) -> Path:
        """Return an adapter's file. Raises UnknownModel."""
        return _pick(self.adapters, adapter, "adapter")


class ModelFolder:
    """Looks into a folder of models, each time anew; None holds none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def scan(self) -> list[StoredModel]:
        """List the models that have a version, by name."""
        return [model for path in _entries(self._folder) if path.is_dir() and (model := _look(path)).versions]

    def find(self, name: str) -> StoredModel:
        """Return one model. Raises UnknownModel."""
        for model in self.scan():
            if model.name == name:
                return model
        if self._folder is None:
            raise UnknownModel("This server has no folder of models; set FOREFRAME_MODELS__FOLDER.")
        raise UnknownModel("The folder of models has none of this name.")


def check_folder(folder: Path | None) -> None:
    """Refuse a folder of models that is not there. Raises SettingsError."""
    if folder is not None and (folder.is_symlink() or not folder.is_dir()):
        raise SettingsError("FOREFRAME_MODELS__FOLDER: is no directory (a link to one is not followed)")


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions sort by: numbers in them count as numbers, so that 10 comes after 9."""
    parts = (part for part in _NUMBER.split(version) if part)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def _look(path: Path) -> StoredModel:
    bundles = [entry for entry in _entries(path) if entry.name != ADAPTERS and (entry / MANIFEST).is_file()]
    adapters = [entry for entry in _entries(path / ADAPTERS) if entry.suffix == _SUFFIX and entry.is_file()]
    return StoredModel(
        path.name,
        {entry.name: entry for entry in sorted(bundles, key=lambda entry: version_order(entry.name))},
        {entry.stem: entry for entry in adapters},
    )


def _entries(folder: Path | None) -> Iterator[Path]:
    if folder is None or not folder.is_dir() or folder.is_symlink():
        return
    for path in sorted(folder.iterdir()):
        if _NAME.fullmatch(path.name) and not path.is_symlink():
            yield path


def _pick(paths: dict[str, Path], name: str, kind: str) -> Path:
    if name not in paths:
        known = ", ".join(paths) or "none"
        raise UnknownModel(f"The model has no such {kind}.", reasons=[Reason(f"/{kind}", "is not there", known[:200])])
    return paths[name]
