"""Sockets to listen on, and how many of them this process may hold."""

import resource
import socket
import stat
from pathlib import Path

import structlog

UNIX = "unix:"
_RESERVED = 128
"""Descriptors for everything that is not a client: files, the cache, workers."""

_log = structlog.get_logger(__name__)


def open_listener(host: str, port: int) -> socket.socket:
    """Listen on an address, or with `unix:` and a path as the host on a socket of its user and group alone.

    Raises OSError.
    """
    if host.startswith(UNIX):
        return _open_unix(Path(host.removeprefix(UNIX)))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    # Connections inherit it; asyncio's own loop would leave it out for sockets that it is given.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _open_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more, and nothing else."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def address_of(listener: socket.socket) -> str:
    """Write where a socket listens, as a client names it."""
    if listener.family is socket.AF_UNIX:
        return f"{UNIX}{listener.getsockname()}"
    name, port = listener.getsockname()[:2]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def remove_path(host: str) -> None:
    """Remove the path of a socket that is closed, where the host names one."""
    if host.startswith(UNIX):
        Path(host.removeprefix(UNIX)).unlink(missing_ok=True)


def affordable_connections(wanted: int) -> int:
    """Return how many connections the limit on open files leaves room for, after raising it as far as one may.

    Raises OSError when there is room for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    affordable = min(wanted, soft - _RESERVED)
    if affordable < 1:
        raise OSError(f"{soft} open files are too few; allow {_RESERVED + 1} or more")
    if affordable < wanted:
        _log.warning("fewer connections than set: too few open files", max_connections=affordable, open_files=soft)
    return affordable
