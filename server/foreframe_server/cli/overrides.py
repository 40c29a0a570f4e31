"""Settings from the environment, with a command's options on top."""

from collections.abc import Mapping
from pathlib import Path

from foreframe_server.log import configure_logging
from foreframe_server.settings import Settings, read_settings


def read_overridden(
    *,
    host: str | None = None,
    port: int | None = None,
    bundle: Path | None = None,
    engine: Mapping[str, object] | None = None,
    record: Path | None = None,
) -> Settings:
    """Read the settings; an option that is None leaves the environment's word. Raises SettingsError."""
    return read_settings(
        {
            "http": _given({"host": host, "port": port}),
            "engine": _given({"bundle": bundle, **(engine or {})}),
            "recording": _given({"folder": record}),
        }
    )


def read_private(bundle: Path | None) -> Settings:
    """Read the settings of a command that serves itself alone: on a free local port, logging only what is wrong."""
    configure_logging(is_quiet=True)
    return read_overridden(host="127.0.0.1", port=0, bundle=bundle)


def _given(options: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}
