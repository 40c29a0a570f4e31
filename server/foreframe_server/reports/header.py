"""Where and with what a report was measured: commit, weights, machine, versions, seeds."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from foreframe_engines.choice import name_machine

_PACKAGES = (
    "foreframe", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "torch", "fastapi", "uvicorn", "httpx",
)  # fmt: skip
_GPU_FIELDS = ("name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "power.draw", "power.limit")
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Weights:
    """Which model was measured. digest: of its bundle, None where only a server knows it."""

    model: str
    revision: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What it was measured on; of a server elsewhere, what asked it. load_average: of the minute before the end.

    cores: the numbers of those that this process may run on.
    """

    name: str
    system: str
    total_cores: int
    cores: Sequence[int]
    load_average: float
    gpus: Sequence[Mapping[str, str]]

    @classmethod
    def here(cls) -> "Machine":
        """Look at this machine."""
        load = round(os.getloadavg()[0], 2)
        total = os.cpu_count() or 1
        return cls(name_machine(), platform.platform(), total, _list_cores(total), load, _list_gpus())


@dataclass(frozen=True, slots=True)
class Header:
    """What has to be said for a number to mean something. commit: with `+` behind it where files were changed since.

    server: the address where it was not started for the run; its commit is None, because no server tells, and
    server_version is what it calls itself. versions, machine: of what asked it.
    """

    taken_at: str
    commit: str | None
    weights: Weights | None
    machine: Machine
    versions: Mapping[str, str]
    seeds: Sequence[int]
    server: str | None = None
    server_version: str | None = None

    @classmethod
    def now(
        cls,
        weights: Weights | None,
        seeds: Sequence[int],
        server: str | None = None,
        server_version: str | None = None,
    ) -> "Header":
        """Look at this program and this machine."""
        taken_at = datetime.now(UTC).isoformat(timespec="seconds")
        commit = read_commit() if server is None else None
        machine, versions = Machine.here(), _read_versions()
        return cls(taken_at, commit, weights, machine, versions, tuple(seeds), server, server_version)

    def record(self) -> dict[str, object]:
        """Return it as a JSON object."""
        return asdict(self)


def read_commit(folder: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit that a folder's files are of, None where git does not keep them."""
    if shutil.which("git") is None or _run("git", "-C", str(folder), "ls-files", "--error-unmatch", ".") is None:
        return None
    commit = _run("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _run("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if commit and changed else commit


def _list_cores(total: int) -> tuple[int, ...]:
    """List what the scheduler allows, all where the system has no such list."""
    if not hasattr(os, "sched_getaffinity"):
        return tuple(range(total))
    return tuple(sorted(os.sched_getaffinity(0)))


def _read_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _list_gpus() -> list[dict[str, str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    said = _run("nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader")
    lines = said.splitlines() if said else []
    return [dict(zip(_GPU_FIELDS, map(str.strip, line.split(",")), strict=False)) for line in lines]


def _run(*command: str) -> str | None:
    """Return what a program says, None when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
