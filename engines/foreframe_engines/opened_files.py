"""Files of one folder, opened without following links: what is checked is what is read, with no second look-up.

Large files are mapped, so their pages are shared and nothing is read twice. Knows no file's format.
"""

import errno
import mmap
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from foreframe_engines.errors import BundleError

MAX_TEXT_BYTES = 2**24
"""Of what is read into memory to be parsed whole."""
_MAPPED_FROM_BYTES = 2**20
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY)  # a folder on the way need not be readable
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpenFolder:
    """One folder held open; a context manager.

    A folder of links, of pipes or of files that other folders share is refused.
    """

    def __init__(self, path: Path, *, may_share_files: bool = False) -> None:
        """Open a folder, one component after the other.

        may_share_files: allow hard links, with which some package managers install. Raises BundleError naming a
        component that is missing, a link or no folder.
        """
        self.path, self._may_share = path, may_share_files
        self._descriptor = _open_folder(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def names(self) -> set[str]:
        """List the files. Raises BundleError naming anything that is not a plain file."""
        with os.scandir(self._descriptor) as entries:
            for entry in (found := list(entries)):
                if not entry.is_file(follow_symlinks=False):
                    raise BundleError(f"{self.path}: {entry.name!r} is not a plain file")
        return {entry.name for entry in found}

    def read(self, name: str, max_bytes: int | None = None) -> memoryview:
        """Return a file's bytes, read-only; large ones are mapped.

        Raises BundleError when it is missing, a link, shared with another folder, or larger than allowed.
        """
        if not is_plain_name(name):
            raise BundleError(f"{self.path}: {name!r} is not the name of a file of this folder")
        try:
            descriptor = os.open(name, _FILE, dir_fd=self._descriptor)
        except OSError as error:
            problem = "is not a plain file" if error.errno == errno.ELOOP else "cannot be read"
            raise BundleError(f"{self.path}: {name!r} {problem}") from error
        try:
            size = self._require_plain(name, os.fstat(descriptor), max_bytes)
            if size < _MAPPED_FROM_BYTES:
                return memoryview(os.read(descriptor, size))
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    def _require_plain(self, name: str, state: os.stat_result, max_bytes: int | None) -> int:
        where = f"{self.path}: {name!r}"
        if not stat.S_ISREG(state.st_mode):
            raise BundleError(f"{where} is not a plain file")
        if state.st_nlink != 1 and not self._may_share:
            raise BundleError(f"{where} is one file with {state.st_nlink} names; copy it instead of linking it")
        if max_bytes is not None and state.st_size > max_bytes:
            raise BundleError(f"{where} has {state.st_size} bytes; at most {max_bytes} are read")
        return state.st_size


def is_plain_name(name: str) -> bool:
    """Tell whether a name can only be that of a file of the same folder."""
    return name not in {"", ".", ".."} and not set(name) & {"/", "\\", "\0", ":"}


def _open_folder(path: Path) -> int:
    absolute = path.absolute()
    parts = absolute.parts[1:]
    held = os.open(absolute.anchor, (_SEARCH if parts else os.O_RDONLY) | _FOLDER)
    for depth, part in enumerate(parts, 1):
        mode = os.O_RDONLY if depth == len(parts) else _SEARCH
        try:
            opened = os.open(part, mode | _FOLDER, dir_fd=held)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {_say_fault(held, part, error)}") from error
        finally:
            os.close(held)
        held = opened
    return held


def _say_fault(folder: int, part: str, error: OSError | ValueError) -> str:
    try:
        is_link = stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode)
    except (OSError, ValueError):
        is_link = False
    if is_link:
        return f"{part!r} is a link; name the folder that it leads to"
    return f"{part!r}: {error.strerror if isinstance(error, OSError) else error}"
