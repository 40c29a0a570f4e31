"""`foreframe serve`: a server that says where it answers."""

from foreframe_engines import Contract
from foreframe_server.cli.backends import find_backend
from foreframe_server.cli.console import print_json, print_note, print_pretty
from foreframe_server.cli.faults import needs_data
from foreframe_server.cli.serving import serve_until_stopped
from foreframe_server.log import configure_logging
from foreframe_server.settings import Settings


def serve_model(settings: Settings, *, is_json: bool) -> None:
    """Serve until a signal.

    Raises OSError for a folder that cannot be recorded into, BundleError for a bad model,
    RuntimeUnavailable for a backend that is not here, Fault for a taken port.
    """
    configure_logging(is_json=is_json)

    def announce(address: str, contract: Contract) -> None:
        if is_json:
            print_json({"address": address, "model": contract.model, "revision": contract.revision})
        else:
            print_pretty(
                f"[bold]{contract.model}[/] {contract.revision} answers at [bold]{address}[/] (Ctrl-C stops it)"
            )

    if settings.recording.folder is not None:
        with needs_data():
            import mcap  # noqa: F401 - only whether it is there
        settings.recording.folder.mkdir(parents=True, exist_ok=True)
    if settings.keys.file is None:
        print_note("no keys: whoever reaches this machine's own address may ask everything (see `foreframe keys`)")
    open_engines = find_backend(settings.engine)
    if not is_json:
        print_note("opening the model ...")
    serve_until_stopped(settings, announce, open_engines)
