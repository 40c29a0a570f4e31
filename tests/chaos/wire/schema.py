"""Cases that a schema fuzzer draws from the OpenAPI document, sent to a server; its report becomes counts."""

import asyncio
import copy
import json
import os
import sysconfig
from collections import Counter
from pathlib import Path

from harness.scenario import Stage
from harness.servers import FOLDER

from foreframe_server.app import OPENAPI_PATH

_PROGRAM = Path(sysconfig.get_path("scripts")) / "st"
_LIMIT_S = 840
# What the document calls good may not fit the model that is loaded: its cameras, widths and names.
# And a method that nobody knows is refused at the door, before there is a route that could answer 405.
_UNFIT = "positive_data_acceptance,unsupported_method"
_UNLOADING = "/unload$"
"""Left out: once the only model is unloaded, all else that is asked would hear so."""
_KINDS = {
    "server_errors": ("server error",),
    "undocumented": ("undocumented", "undeclared", "content type", "schema", "allow header"),
    "bad_accepted": ("accepted", "violat"),
}


async def fuzz_schema(stage: Stage, *, examples: int, phases: str) -> None:
    """Draw cases from the document as it is."""
    await _fuzz(stage, OPENAPI_PATH, examples, phases)


async def fuzz_narrowed(stage: Stage, *, examples: int) -> None:
    """Draw cases from a document that says of a prediction and of a reply less than is so."""
    document = json.loads(OPENAPI_PATH.read_text())
    narrowed = copy.deepcopy(document)
    narrowed["paths"] = {path: narrowed["paths"][path] for path in ("/version", "/v2")}
    for path in narrowed["paths"]:
        narrowed["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"] = {"type": "string"}
    path = stage.folder / "openapi.json"
    path.write_text(json.dumps(narrowed))
    await _fuzz(stage, path, examples, "fuzzing")


async def _fuzz(stage: Stage, document: Path, examples: int, phases: str) -> None:
    report = stage.folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        _PROGRAM, "run", document, "--url", stage.server.address, "--checks", "all", "--exclude-checks", _UNFIT,
        "--exclude-path-regex", _UNLOADING,
        "--mode", "all", "--max-examples", str(examples), "--phases", phases, "--seed", "1", "--workers", "2",
        "--continue-on-failure", "--no-shrink", "--suppress-health-check", "all", "--generation-database", "none",
        "--report", "json", "--report-json-path", report,
        cwd=stage.folder, env={**os.environ, "SCHEMATHESIS_HOOKS": "wire.schema_hooks", "PYTHONPATH": str(FOLDER)},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_LIMIT_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    stage.facts |= read_report(json.loads(report.read_text()))


def read_report(report: dict) -> dict[str, float]:
    """Count a report's cases, failures by what they are, and operations that no case reached."""
    titles = [str(failure.get("title", failure)).lower() for failure in report["failures"]]
    found = Counter(kind for title in titles for kind, words in _KINDS.items() if any(word in title for word in words))
    operations = report["operations"]
    return {
        "cases": float(report["test_cases"]["generated"]),
        "operations": float(operations["tested"]),
        "untested": float(operations["selected"] - operations["tested"]),
        "num_failures": float(len(titles)),
        "num_errors": float(sum(error["count"] for error in report["errors"])),
        **{f"num_{kind}": float(found[kind]) for kind in _KINDS},
    }
