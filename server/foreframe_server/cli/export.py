"""`foreframe export`: a training run becomes a bundle."""

import json
from pathlib import Path

from foreframe_engines import Bundle
from foreframe_server.cli.console import print_json, print_note
from foreframe_server.cli.faults import Fault, needs_torch


def export_run(run: Path, data: Path, out: Path, report: Path | None, revision: str, *, is_json: bool) -> None:
    """Write the bundle and open it again. Raises DatasetError, BundleError, or Fault without torch or a whole run."""
    with needs_torch():
        from foreframe_models.embedded import export_embedded
    measured = {} if report is None else _read_report(report)
    print_note("exporting graphs ...")
    export_embedded(run, data, out, revision=revision, measured=measured)
    bundle = Bundle.open(out)
    if is_json:
        print_json({"out": str(out), "id": bundle.contract.model, "revision": revision, "digest": bundle.digest})
    else:
        print_note(f"{bundle.contract.model} {revision} lies in {out}")


def _read_report(path: Path) -> dict[str, object]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Fault(f"{path} is not the JSON of a report: {error}") from error
    if not isinstance(report, dict):
        raise Fault(f"{path} holds no report")
    return report
