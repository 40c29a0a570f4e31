"""Results on disk, one file a server, so that a run can go on where another ended. Knows no server."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.plan import Plan

_PLAN = "plan.json"


class Ledger:
    """A folder of results that were all measured by one plan."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def plan(self) -> Plan | None:
        """Return the plan of what is there; None without one that can be read."""
        try:
            return Plan(**json.loads((self.folder / _PLAN).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, plan: Plan) -> None:
        """Forget all results and go by another plan."""
        for path in self.folder.glob("result-*.json"):
            path.unlink()
        (self.folder / _PLAN).write_text(json.dumps(asdict(plan), indent=2) + "\n")

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a server's result in place of an older one."""
        self._path(name).write_text(json.dumps(result, indent=2) + "\n")

    def drop(self, name: str) -> None:
        """Forget a server's result."""
        self._path(name).unlink(missing_ok=True)

    def results(self) -> dict[str, Mapping[str, Any]]:
        """Return all results by server."""
        return {path.stem.removeprefix("result-"): json.loads(path.read_text()) for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("result-*.json"))

    def _path(self, name: str) -> Path:
        return self.folder / f"result-{name}.json"
