"""The file that keys are kept in: read when it has changed, written whole. It knows paths, and no callers."""

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from foreframe_server.keys import MAX_FILE_BYTES, Key, KeyFileError, KeyRing, parse_keys, write_keys

_LOOK_AGAIN_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Version:
    """What tells one state of a file from another."""

    inode: int
    num_bytes: int
    changed_ns: int


class WatchedKeys:
    """The keys of a file, looked at again when it has changed: a key that is added or revoked counts a second later.

    A file that has become unreadable changes nothing: its last keys stay, and the log says so. Raises KeyFileError
    when it cannot be read the first time.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_s = clock()
        self._version = _look(path)
        self._ring = KeyRing(read_key_file(path))

    def ring(self) -> KeyRing:
        """Return the keys as they are now."""
        now_s = self._clock()
        if now_s - self._looked_s >= _LOOK_AGAIN_S:
            self._looked_s = now_s
            self._refresh()
        return self._ring

    def _refresh(self) -> None:
        version = _look(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._ring = KeyRing(read_key_file(self._path))
        except KeyFileError as error:
            _log.exception("the file of keys is left as it was known", reason=str(error))
        else:
            _log.info("the file of keys was read again", num_keys=len(self._ring))


def _look(path: Path) -> _Version | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return _Version(seen.st_ino, seen.st_size, seen.st_mtime_ns)


def read_key_file(path: Path) -> tuple[Key, ...]:
    """Read a file of keys. Raises KeyFileError with one line that names it."""
    try:
        with path.open("rb") as file:
            is_guarded = not os.fstat(file.fileno()).st_mode & stat.S_IWOTH
            data = file.read(MAX_FILE_BYTES + 1)
        return _parse(data, is_guarded=is_guarded)
    except OSError as error:
        raise KeyFileError(f"the file of keys {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"the file of keys {path} is not UTF-8") from error
    except KeyFileError as error:
        raise KeyFileError(f"the file of keys {path}: {error}") from error


def _parse(data: bytes, *, is_guarded: bool) -> tuple[Key, ...]:
    if not is_guarded:
        raise KeyFileError("may be written by everybody")
    if len(data) > MAX_FILE_BYTES:
        raise KeyFileError(f"is larger than {MAX_FILE_BYTES} bytes")
    return parse_keys(data.decode("utf-8"))


def write_key_file(path: Path, keys: Sequence[Key]) -> None:
    """Put a file of keys in a path's place at once, for the eyes that the old one was for, or its owner's alone.

    Raises OSError.
    """
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        if path.exists():
            _dress_as(handle, path.stat())
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(write_keys(keys))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _dress_as(handle: int, old: os.stat_result) -> None:
    os.fchmod(handle, stat.S_IMODE(old.st_mode))
    with contextlib.suppress(PermissionError):  # it is root's to give files away
        os.fchown(handle, old.st_uid, old.st_gid)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """Give a file's keys as a list, and write what the block made of it; nobody else changes it meanwhile.

    There may be no file yet. Raises KeyFileError, or OSError when it cannot be written.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = list(read_key_file(path)) if path.exists() else []
        yield keys
        write_key_file(path, keys)
    finally:
        os.close(folder)
