"""What a report has to say of where it was made."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.catalogue import ROOT

from foreframe_engines import Bundle, builtin_bundle

_PACKAGES = ("foreframe", "numpy", "onnxruntime", "httpx", "uvicorn")


def machine_facts(server_cores: Sequence[int], asker_cores: Sequence[int]) -> Mapping[str, object]:
    """Return the commit, the model, the machine and the versions."""
    bundle = Bundle.open(builtin_bundle())
    return {
        "commit": _git("rev-parse", "HEAD"),
        "is_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "model": bundle.contract.model,
        "digest": bundle.digest,
        "machine": _processor(),
        "cores": os.cpu_count(),
        "server_cores": list(server_cores),
        "asker_cores": list(asker_cores),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "seed": 0,
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()
