"""What tells files that this user wrote from any others: an HMAC with a key that only this user can read.

The key lies apart from what it seals, so that a folder copied from elsewhere cannot bring its own.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from foreframe_engines.errors import RuntimeUnavailable

SEAL_BYTES = 32
_KEY_BYTES = 32


def default_key_path() -> Path:
    """Return where this user's key lies: in the folder that the desktop's rules give to a program's state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "foreframe" / "engines.key"


class Seal:
    """Signs bytes with a key file, made at the first use."""

    def __init__(self, key_path: Path | None = None) -> None:
        """Take the place of the key. key_path: by default `default_key_path`."""
        self._path = key_path

    def sign(self, content: bytes) -> bytes:
        """Return the seal of some bytes.

        Raises RuntimeUnavailable when the key cannot be kept, or others may read it.
        """
        return hmac.digest(self._read_key(), content, hashlib.sha256)

    def is_genuine(self, content: bytes, seal: bytes) -> bool:
        """Tell whether bytes were sealed with this key. Raises as `sign`."""
        return hmac.compare_digest(self.sign(content), seal)

    def _read_key(self) -> bytes:
        try:
            path = self._path or default_key_path()
            if not path.exists():
                _make_key(path)
            return _read_private(path)
        except (OSError, RuntimeError) as error:  # the latter where a user has no home
            remedy = "set XDG_STATE_HOME to a folder that is this user's alone"
            raise RuntimeUnavailable(
                f"the key that engines are sealed with cannot be kept ({error}); {remedy}"
            ) from error


def _make_key(path: Path) -> None:
    """Write a new key, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        file.write(secrets.token_bytes(_KEY_BYTES))
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _read_private(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, no path
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            raise RuntimeUnavailable(f"{path} is not this user's alone; `chmod 600` it, or remove it")
        key = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise RuntimeUnavailable(f"{path} holds no key of {_KEY_BYTES} bytes; remove it, and engines are built again")
    return key
