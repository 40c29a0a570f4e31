"""What operators ask of a server's models, as flows, which both kinds of client drive. Needs a key of scope admin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple
from urllib.parse import quote

from foreframe_client import _calls as calls
from foreframe_client import _wire as wire
from foreframe_client._fields import Fields
from foreframe_client._retry import Deadline


@dataclass(frozen=True)
class ModelStatus:
    """One model that is loaded or could be. `version` and `adapter` are of what answers, None where nothing does.

    state: READY, LOADING, UNLOADING or UNAVAILABLE. reason: why the last load failed, or why nothing is loaded.
    versions and adapters: of the server's folder.
    """

    name: str
    state: str
    version: Optional[str]
    adapter: Optional[str]
    reason: str
    versions: Tuple[str, ...]
    adapters: Tuple[str, ...]


def model_statuses(session: calls.Session) -> calls.Flow[Tuple[ModelStatus, ...]]:
    """List the models that are loaded or could be."""
    reply = yield from calls.ask(session, lambda _left_ms: wire.get("admin", "models"), Deadline())
    return tuple(_read_status(entry) for entry in wire.fields_of(reply).maps("models"))


def load_model(
    session: calls.Session, name: str, *, version: Optional[str] = None, adapter: Optional[str] = None
) -> calls.Flow[ModelStatus]:
    """Load a model, by default its newest version, in place of the one that answers; return when that one is closed.

    Raises UnknownModel, or ModelFault that says why the old one still answers.
    """
    body = wire.given(version=version, adapter=adapter)
    return (yield from _change(session, name, "load", body))


def unload_model(session: calls.Session, name: str) -> calls.Flow[ModelStatus]:
    """Let a model end what it has, then close it. Raises UnknownModel when it is not loaded."""
    return (yield from _change(session, name, "unload", {}))


def _change(session: calls.Session, name: str, change: str, body: Mapping[str, object]) -> calls.Flow[ModelStatus]:
    path = f"/admin/models/{quote(name, safe='')}/{change}"
    reply = yield from calls.ask(session, lambda _left_ms: wire.post(path, body), Deadline())
    session.contracts.clear()
    return _read_status(wire.fields_of(reply))


def _read_status(fields: Fields) -> ModelStatus:
    return ModelStatus(
        name=fields.text("name"),
        state=fields.text("state"),
        version=fields.text("version") if fields.has("version") else None,
        adapter=fields.text("adapter") if fields.has("adapter") else None,
        reason=fields.text("reason"),
        versions=tuple(fields.texts("versions")),
        adapters=tuple(fields.texts("adapters")),
    )
