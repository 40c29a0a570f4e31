"""What is wrong with a reply, in a word: nothing, or a fault that no request may cause. Knows no request."""

import json
import re

from wire.sockets import Reply

MARKER = "planted-7f3a"
"""What no reply may repeat, where it was sent as something wrong."""

MAX_REFUSAL_BYTES = 4096
_EXPLAINED = frozenset({"overloaded", "deadline_unmeetable", "not_ready", "deadline_exceeded", "extension_missing"})
_TELLTALES = re.compile(
    rb"(?<![0-9])0x[0-9a-fA-F]{4,}|Traceback|File \"|\.py\b|/(?:home|usr|tmp|srv|opt|root|proc)/|"
    rb"\b(?:[A-Z][a-z]+){1,4}(?:Error|Exception|Warning)\b|<class |object at |foreframe_\w+\."
)


def judge(reply: Reply) -> str | None:
    """Name the fault of a reply, None where there is none.

    `hang`, `server_error`, `untyped`, `large`, or `leak`: an address, a path, a class or a word of the input.
    """
    if reply.is_hung:
        return "hang"
    if reply.status < 400:
        return None
    if MARKER.encode() in reply.body or _TELLTALES.search(reply.body):
        return "leak"
    code = code_of(reply.body)
    if reply.status >= 500 and code not in _EXPLAINED:
        return "server_error"
    if len(reply.body) > MAX_REFUSAL_BYTES:
        return "large"
    return "untyped" if reply.body and not code else None


def code_of(body: bytes) -> str:
    """Read a refusal's code, empty where it is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("code", "")) if isinstance(document, dict) else ""
