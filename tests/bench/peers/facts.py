"""What a report has to say of where it was made."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.catalogue import ROOT
from peers.ledger import Origin

from foreframe_engines import Bundle, builtin_bundle

_PACKAGES = ("foreframe", "numpy", "onnxruntime", "httpx", "uvicorn")
_CODE = ("engines", "server", "tests/bench/peers")


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


def origin() -> Origin:
    """Return what results must share to stand in one table."""
    return Origin(_git("rev-parse", "HEAD"), Bundle.open(builtin_bundle()).digest)


def code_digest() -> str:
    """Return a digest of the commit and of what is changed in the measured code since."""
    words = [_git("rev-parse", "HEAD"), _git("diff", "HEAD", "--", *_CODE)]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()
