"""`foreframe keys` and its options. Imports typer and the scopes: what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from foreframe_server.cli.options import JsonFlag
from foreframe_server.keys import Scope

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of callers.")
FileOption = Annotated[
    Path | None, typer.Option("--file", help="File of keys.", show_default="that of FOREFRAME_KEYS__FILE")
]


@keys.command("create")
def create_key(
    *,
    file: FileOption = None,
    tenant: Annotated[str, typer.Option(help="Whose it is: keys of one tenant share results and sessions.")] = "main",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; may be given several times.", show_default="predict, likelihood"),
    ] = None,
    key_id: Annotated[str | None, typer.Option("--id", help="Its public half.", show_default="drawn")] = None,
    days: Annotated[
        float | None, typer.Option(min=0, help="Days after which it expires.", show_default="never")
    ] = None,
    step_ms_per_s: Annotated[
        float | None, typer.Option(help="Device time that it may use, in ms a second.", show_default="no limit")
    ] = None,
    burst_step_ms: Annotated[
        float | None, typer.Option(help="Device time that it may use at once, in ms.", show_default="2 s' worth")
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    json: JsonFlag = False,
) -> None:
    """Make a key and print it, once: the file holds only its hash. A running server knows it a second later."""
    from foreframe_server.cli.keys import KeyWish, add_key

    if burst_step_ms is not None and step_ms_per_s is None:
        raise typer.BadParameter("needs --step-ms-per-s too", param_hint="--burst-step-ms")
    wish = KeyWish(key_id, tenant, tuple(scope or ()), days, step_ms_per_s, burst_step_ms, note)
    add_key(file, wish, is_json=json)


@keys.command("list")
def list_keys(*, file: FileOption = None, json: JsonFlag = False) -> None:
    """List the keys, without their secrets, which nobody has but their callers."""
    from foreframe_server.cli.keys import show_keys

    show_keys(file, is_json=json)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's public half.")],
    *,
    file: FileOption = None,
) -> None:
    """Forget a key. A running server refuses it a second later, on connections that are open too."""
    from foreframe_server.cli.keys import remove_key

    remove_key(file, key_id)
