"""Results on disk, one file a pass, so that a run can go on where another ended. Knows no server."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from peers.plan import Plan

_PLAN = "plan.json"
_MAX_AGE = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Origin:
    """What was measured. digest: of the model's weights."""

    commit: str | None
    digest: str


class Ledger:
    """A folder of results by one plan, of one commit and one model, taken within three hours of now."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        """Open or make the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.origin = folder, origin

    def plan(self) -> Plan | None:
        """Return the plan of what is there; None without one that can be read, or of another origin, or an old one."""
        try:
            document = json.loads((self.folder / _PLAN).read_text())
            if not self._is_ours(document):
                return None
            return Plan(**{**document["plan"], "loads": tuple(document["plan"]["loads"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def begin(self, plan: Plan) -> None:
        """Forget all results and go by another plan."""
        for path in self._paths():
            path.unlink()
        self._write(self.folder / _PLAN, {"plan": asdict(plan)})

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a result in place of an older one."""
        self._write(self._path(name), result)

    def drop(self, name: str) -> None:
        """Forget a result."""
        self._path(name).unlink(missing_ok=True)

    def results(self) -> dict[str, Mapping[str, Any]]:
        """Return all results that may stand beside each other, by name."""
        found = {path.stem.removeprefix("result-"): json.loads(path.read_text()) for path in self._paths()}
        return {name: result for name, result in found.items() if self._is_ours(result)}

    def _is_ours(self, document: Mapping[str, Any]) -> bool:
        if any(document.get(name) != value for name, value in asdict(self.origin).items()):
            return False
        return _now() - datetime.fromisoformat(document["taken_at"]) <= _MAX_AGE

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        taken_at = _now().isoformat(timespec="seconds")
        whole = {**asdict(self.origin), "taken_at": taken_at, **document}
        path.write_text(json.dumps(whole, indent=2) + "\n")

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("result-*.json"))

    def _path(self, name: str) -> Path:
        return self.folder / f"result-{name}.json"


def _now() -> datetime:
    return datetime.now(UTC)
