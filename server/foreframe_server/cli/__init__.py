"""The command line: `commands` is what a person types, a module a command is what then happens."""

from foreframe_server.cli.commands import app


def main() -> None:
    """Run the command line."""
    app()
