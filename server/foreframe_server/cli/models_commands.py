"""`foreframe models` and its options. Imports typer alone: what a command needs is imported when it runs."""

from typing import Annotated

import typer

from foreframe_server.cli.options import BundleOption, JsonFlag, UrlOption, refuse_before, refuse_options

models = typer.Typer(help="List models and what they take and give; load, swap and unload a server's.")
ServerOption = Annotated[str, typer.Option("--url", "--at", help="Address of a running server.")]
NameArgument = Annotated[str, typer.Argument(help="Name of a model of the server's folder.")]
_HERE = "http://127.0.0.1:8000"


@models.callback(invoke_without_command=True)
def list_contracts(
    context: typer.Context, *, url: UrlOption = None, bundle: BundleOption = None, json: JsonFlag = False
) -> None:
    """List models and what they take and give: the ones here, or with --url a server's."""
    from foreframe_server.cli.models import list_models

    if context.invoked_subcommand is None:
        list_models(url, bundle, is_json=json)
        return
    refuse_before(context.invoked_subcommand, {"--url": url, "--json": json or None})
    refuse_options(context.invoked_subcommand, {"--bundle": bundle})


@models.command("list")
def list_statuses(*, url: ServerOption = _HERE, json: JsonFlag = False) -> None:
    """List what a server has loaded or could load: versions, adapters, and why a load failed."""
    from foreframe_server.cli.model_changes import show_statuses

    show_statuses(url, is_json=json)


@models.command("load")
def load(
    name: NameArgument,
    *,
    version: Annotated[str | None, typer.Option("--version", help="Which version.", show_default="the newest")] = None,
    adapter: Annotated[str | None, typer.Option(help="Which adapter.", show_default="none")] = None,
    url: ServerOption = _HERE,
    json: JsonFlag = False,
) -> None:
    """Load a model in place of the version that answers; what fails leaves that one answering."""
    from foreframe_server.cli.model_changes import load_model

    load_model(url, name, version, adapter, is_json=json)


@models.command("unload")
def unload(name: NameArgument, *, url: ServerOption = _HERE, json: JsonFlag = False) -> None:
    """Let a model end what it has, then close it."""
    from foreframe_server.cli.model_changes import unload_model

    unload_model(url, name, is_json=json)
