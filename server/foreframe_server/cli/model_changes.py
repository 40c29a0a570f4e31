"""`foreframe models list`, `load` and `unload`: a server's models by way of the real client."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from foreframe_server.cli.console import print_json, print_pretty
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.remote import connected

if TYPE_CHECKING:
    from foreframe_client import ModelStatus

_PATIENCE_S = 900.0
"""A large model takes minutes to load, be tried and replace another."""


def show_statuses(url: str, *, is_json: bool) -> None:
    """Print how every model of a server stands. Raises Fault or ForeframeError."""
    with connected(url) as client:
        statuses = client.model_statuses()
    if not statuses:
        raise Fault("the server is not ready: no model is open yet")
    if is_json:
        print_json({"models": [asdict(status) for status in statuses]})
    else:
        print_pretty(_table(statuses))


def load_model(url: str, name: str, version: str | None, adapter: str | None, *, is_json: bool) -> None:
    """Load a model of a server and print how it stands then. Raises Fault or ForeframeError."""
    with connected(url, timeout_s=_PATIENCE_S) as client:
        _show(client.load_model(name, version=version, adapter=adapter), is_json=is_json)


def unload_model(url: str, name: str, *, is_json: bool) -> None:
    """Unload a model of a server and print how it stands then. Raises Fault or ForeframeError."""
    with connected(url, timeout_s=_PATIENCE_S) as client:
        _show(client.unload_model(name), is_json=is_json)


def _show(status: "ModelStatus", *, is_json: bool) -> None:
    if is_json:
        print_json(asdict(status))
    else:
        print_pretty(_table([status]))


def _table(statuses: "Sequence[ModelStatus]") -> Table:
    table = Table("name", "state", "version", "adapter", "versions", "adapters", "reason", header_style="bold")
    for status in statuses:
        table.add_row(
            status.name,
            status.state,
            status.version or "",
            status.adapter or "",
            ", ".join(status.versions),
            ", ".join(status.adapters),
            status.reason,
        )
    return table
