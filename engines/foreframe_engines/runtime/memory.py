"""How much memory there is, and one clear line where it is too little."""

from pathlib import Path

from foreframe_engines.errors import RuntimeUnavailable

_GIB = 2**30


def require_memory(what: str, needed_bytes: int, free_bytes: int, where: str) -> None:
    """Raise RuntimeUnavailable, with both numbers, when `what` needs more than is free."""
    if needed_bytes > free_bytes:
        raise RuntimeUnavailable(
            f"{what} needs about {needed_bytes / _GIB:.1f} GiB {where}, {free_bytes / _GIB:.1f} GiB are free"
        )


def free_host_bytes(report: Path = Path("/proc/meminfo")) -> int | None:
    """Return how many bytes this machine can still give out, None where it does not say."""
    try:
        lines = report.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) * 1024 for kib in found), None)
