"""`foreframe keys`: the file of callers' keys, changed by hand."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer
from rich.table import Table

from foreframe_server.cli.console import print_json, print_note, print_pretty
from foreframe_server.cli.faults import Fault
from foreframe_server.key_file import changing, read_key_file
from foreframe_server.keys import Key, KeyFileError, Quota, Record, Scope, key_record, mint_key, parse_keys, write_keys
from foreframe_server.settings import read_settings

_BURST_S = 2.0


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a new key shall be; `scopes` empty are those of a robot."""

    key_id: str | None
    tenant: str
    scopes: tuple[Scope, ...]
    days: float | None
    step_ms_per_s: float | None
    burst_step_ms: float | None
    note: str

    @property
    def expires(self) -> datetime | None:
        """When its days are over, in whole seconds."""
        return None if self.days is None else (datetime.now(UTC) + timedelta(days=self.days)).replace(microsecond=0)

    @property
    def quota(self) -> Quota | None:
        """What it may use, at once as much as in two seconds where nothing else is asked."""
        if self.step_ms_per_s is None:
            return None
        return Quota(self.step_ms_per_s, self.burst_step_ms or _BURST_S * self.step_ms_per_s)


def add_key(file: Path | None, wish: KeyWish, *, is_json: bool) -> None:
    """Make a key and print it. Raises Fault for a file or a wish that will not do, OSError."""
    path = _path(file)
    scopes = wish.scopes or (Scope.PREDICT, Scope.LIKELIHOOD)
    minted = mint_key(wish.key_id, wish.tenant, scopes, expires=wish.expires, quota=wish.quota, note=wish.note)
    try:
        parse_keys(write_keys([minted.key]))
        with changing(path) as keys:
            if any(key.id == minted.key.id for key in keys):
                raise Fault(f"there is a key {minted.key.id} already")
            keys.append(minted.key)
    except KeyFileError as error:
        raise Fault(str(error)) from error
    if is_json:
        print_json({**_shown(minted.key), "token": minted.token})
    else:
        print_note(f"key {minted.key.id} of {minted.key.tenant} is in {path}; its secret is shown this once:")
        typer.echo(minted.token)  # in one piece, however narrow the terminal is


def show_keys(file: Path | None, *, is_json: bool) -> None:
    """List the keys of a file. Raises Fault."""
    try:
        keys = read_key_file(_path(file))
    except KeyFileError as error:
        raise Fault(str(error)) from error
    if is_json:
        print_json({"keys": [_shown(key) for key in keys]})
    else:
        print_pretty(_table(keys))


def remove_key(file: Path | None, key_id: str) -> None:
    """Forget a key of a file. Raises Fault, OSError."""
    path = _path(file)
    try:
        with changing(path) as keys:
            left = [key for key in keys if key.id != key_id]
            if len(left) == len(keys):
                raise Fault(f"there is no key {key_id} in {path}")
            keys[:] = left
    except KeyFileError as error:
        raise Fault(str(error)) from error
    print_note(f"key {key_id} is revoked")


def _path(file: Path | None) -> Path:
    path = file or read_settings().keys.file
    if path is None:
        raise Fault("name the file of keys: --file, or FOREFRAME_KEYS__FILE")
    return path


def _shown(key: Key) -> Record:
    return {name: value for name, value in key_record(key).items() if name != "sha256"}


def _table(keys: tuple[Key, ...]) -> Table:
    now = datetime.now(UTC)
    table = Table(header_style="bold")
    for name in ("id", "tenant", "scopes", "expires", "step-ms a second", "note"):
        table.add_column(name, overflow="fold")
    for key in keys:
        expires = "never" if key.expires is None else key.expires.isoformat()
        quota = "any" if key.quota is None else f"{key.quota.step_ms_per_s:g} ({key.quota.burst_step_ms:g} at once)"
        is_over = " (over)" if key.has_expired(now) else ""
        table.add_row(key.id, key.tenant, ", ".join(sorted(key.scopes)), expires + is_over, quota, key.note)
    return table
