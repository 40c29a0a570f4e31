"""An environment for each peer, from the file that pins it. Once made it is left alone until the file changes."""

import hashlib
import subprocess
from pathlib import Path

from peers.catalogue import Peer
from peers.errors import NotMeasured

_INSTALL_S = 600.0
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement")


def install(peer: Peer) -> None:
    """Make a peer's environment where it is missing or old. Raises NotMeasured."""
    if peer.python is None:
        return
    stamp = peer.home / "requirements.sha256"
    wanted = hashlib.sha256(peer.requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    _run(peer, [peer.python, "-m", "venv", "--clear", str(peer.home)])
    _run(peer, [str(peer.home / "bin" / "python"), *_PIP, str(peer.requirements)])
    stamp.write_text(wanted)


def pinned_version(peer: Peer) -> str | None:
    """Return the version of a peer's package that its file pins; None for what needs no environment."""
    if peer.package is None:
        return None
    lines = (line.partition("==") for line in peer.requirements.read_text().splitlines())
    return next(version for name, _, version in lines if name.partition("[")[0] == peer.package)


def _run(peer: Peer, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(f"{peer.name} cannot be installed: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"{Path(command[0]).name} ended with {done.returncode}"
        raise NotMeasured(f"{peer.name} cannot be installed: {reason}")
