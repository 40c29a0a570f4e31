"""`foreframe models`: the bundles of this machine, or the models of a server."""

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from foreframe_engines import Bundle
from foreframe_engines.bundle import BUILTIN, MANIFEST
from foreframe_server.cli.console import print_json, print_pretty
from foreframe_server.cli.remote import connected

_SHOWN = ("id", "revision", "cameras", "context_frames", "horizon", "fps", "state_schema", "state_dim", "capabilities")


def list_models(url: str | None, bundle: Path | None, *, is_json: bool) -> None:
    """Print every model's contract. Raises BundleError, Fault or ForeframeError."""
    records = list(_bundles(bundle)) if url is None else _served(url)
    if is_json:
        print_json({"models": records})
    else:
        print_pretty(_table(records))


def _bundles(bundle: Path | None) -> Iterator[dict[str, object]]:
    built_in = sorted(path.parent for path in BUILTIN.glob(f"*/{MANIFEST}"))
    for folder in [*built_in, *([bundle] if bundle else [])]:
        opened = Bundle.open(folder)
        contract = opened.contract
        yield {
            "id": contract.model,
            "family": contract.family,
            "revision": contract.revision,
            "description": contract.description,
            "cameras": [{"name": each.name, "height": each.height, "width": each.width} for each in contract.cameras],
            "context_frames": contract.context_frames,
            "horizon": contract.horizon,
            "fps": contract.fps,
            "state_schema": contract.state.name,
            "state_dim": contract.state.dim,
            "capabilities": list(contract.capabilities),
            "path": str(folder),
            "digest": opened.digest,
            "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        }


def _served(url: str) -> list[dict[str, object]]:
    with connected(url) as client:
        return [dict(model.document) for model in client.models()]


def _table(records: list[dict[str, object]]) -> Table:
    table = Table("", *(str(record["id"]) for record in records), header_style="bold")
    for name in [*_SHOWN[1:], "path", "digest"]:
        if any(name in record for record in records):
            table.add_row(name.replace("_", " "), *(_words(record.get(name)) for record in records))
    return table


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_words(each) for each in value)
    if isinstance(value, dict):
        return f"{value['name']} {value['width']}x{value['height']}"
    return str(value)
