"""What is wrong outside this program, said in one line: exit code 3, or a fault's own. Bugs keep their traceback."""

import contextlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

EXIT_CODE = 3


class Fault(Exception):
    """A model, data, a setting or the machine is not as a command needs it; the message is one line for a person."""

    exit_code = EXIT_CODE


class InvalidRun(Fault):
    """A bench's run says nothing about what it was to measure: exit code 2, and no number."""

    exit_code = 2


class FaultLine(TyperGroup):
    """A group whose commands end with one line on standard error instead of the traceback of a known fault."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps the context's class to itself
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = fault_line(error)
            if line is None:
                raise
            typer.echo(f"foreframe: {line}", err=True)
            raise typer.Exit(getattr(error, "exit_code", EXIT_CODE)) from error


def fault_line(error: Exception) -> str | None:
    """Say a known fault in one line, None for anything else."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, _known_errors()):
        return (" ".join(str(error).split()) or type(error).__name__) + _remedy(error)
    return None


def _remedy(error: Exception) -> str:
    """Say where a command takes its key from when a server wants one or another."""
    from foreframe_server.errors import Unauthorized
    from foreframe_server.settings import CLIENT_KEY

    is_about_key = getattr(error, "code", None) == Unauthorized.code
    return f" Commands send the key that {CLIENT_KEY} holds." if is_about_key else ""


def _known_errors() -> tuple[type[Exception], ...]:
    from foreframe_engines import EngineError
    from foreframe_server.settings import SettingsError

    known: tuple[type[Exception], ...] = (Fault, EngineError, SettingsError)
    try:
        from foreframe_client import ForeframeError
    except ModuleNotFoundError:
        return known
    return (*known, ForeframeError)


@contextlib.contextmanager
def needs(remedy: str) -> Iterator[None]:
    """Turn a missing package, imported inside, into a Fault that names it and says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "a package").partition(".")[0]
        raise Fault(f"{missing} is not installed; run `{remedy}`") from error


def needs_client() -> contextlib.AbstractContextManager[None]:
    """Say how to get the client, or what it needs, when that is missing."""
    return needs("pip install foreframe-client")


def needs_data() -> contextlib.AbstractContextManager[None]:
    """Name the extra that reads and writes robots' files when a package of it is missing."""
    return needs("pip install 'foreframe[data]'")


def needs_torch() -> contextlib.AbstractContextManager[None]:
    """Name the extra that brings torch when a package of it is missing."""
    return needs("pip install 'foreframe[models]'")
