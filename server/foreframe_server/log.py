"""How log lines are written: one line an event, keys and values, to standard error. Knows no event."""

import contextlib
import logging
import sys

import structlog


def configure_logging(*, is_json: bool = False, is_quiet: bool = False) -> None:
    """Write lines for people, or one JSON object a line for machines. Control characters never come out as they are.

    is_quiet: warnings and errors alone.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if is_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    traceback = [structlog.processors.format_exc_info] if is_json else []
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *traceback,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if is_quiet else logging.INFO),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=True,
    )


class _LineLogger(structlog.PrintLogger):
    """Writes lines to standard error. One that cannot be written, as on a full disk, is lost and harms no request."""

    def __init__(self, *_: object) -> None:
        super().__init__(sys.stderr)

    def msg(self, message: str) -> None:
        """Write one line if it can be written."""
        with contextlib.suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg
