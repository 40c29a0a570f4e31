"""The head of a request, read strictly: what two parsers could read in two ways is refused. Pure.

RFC 9112 with the leniencies left out: no bare line feeds, no folded lines, one length, one Host, a path as the target.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from foreframe_server.errors import PayloadTooLarge
from foreframe_server.protocols.refusals import HeadTooLarge, MalformedRequest

_REQUEST_LINE = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS|TRACE) (/[!\"$-~]*) HTTP/1\.([01])")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"(?:\[[0-9a-fA-F:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_MAX_LENGTH_DIGITS = 15
END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be."""

    max_bytes: int = 16 * 2**10
    max_line_bytes: int = 4 * 2**10
    max_headers: int = 64


@dataclass(frozen=True, slots=True)
class Head:
    """A head that both parsers read alike: its bytes, and what follows it.

    num_body_bytes: None for a body in chunks. is_last: whether the connection ends with the reply.
    """

    block: bytes
    num_body_bytes: int | None
    is_last: bool
    is_upgrade: bool


def check_beginning(data: bytes, limits: HeadLimits) -> None:
    """Refuse bytes that no head begins with, before it is whole. Raises MalformedRequest or HeadTooLarge."""
    if data and not data[:1].isupper():
        raise MalformedRequest("A request begins with its method.")
    if _BARE_LINE_FEED.search(data, 0, limits.max_bytes):
        raise MalformedRequest("Lines end with CR LF.")
    if len(data) > limits.max_bytes:
        raise _too_large(limits)


def read_head(block: bytes, limits: HeadLimits) -> Head:
    """Read a whole head, its empty line included. Raises MalformedRequest, HeadTooLarge or PayloadTooLarge."""
    line, *rows = block[: -len(END)].split(b"\r\n")
    if len(block) > limits.max_bytes or len(line) > limits.max_line_bytes or len(rows) > limits.max_headers:
        raise _too_large(limits)
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise MalformedRequest("The request line is not a method, a path and HTTP/1.1.")
    method, _, minor = matched.groups()
    is_old = minor == b"0"
    fields = _read_fields(rows)
    _check_host(fields, is_old=is_old)
    num_body_bytes = _read_length(fields, is_old=is_old)
    is_upgrade = method == b"GET" and not is_old and num_body_bytes == 0 and _asks_for_websocket(fields)
    if fields[b"upgrade"] and not is_upgrade:
        block = _without_upgrade(line, rows)
    return Head(block, num_body_bytes, is_old or b"close" in _options(fields), is_upgrade)


def _too_large(limits: HeadLimits) -> HeadTooLarge:
    return HeadTooLarge(
        f"A head may have {limits.max_bytes} bytes, {limits.max_headers} headers"
        f" and {limits.max_line_bytes} bytes in its first line."
    )


def _read_fields(rows: list[bytes]) -> defaultdict[bytes, list[bytes]]:
    fields = defaultdict(list)
    for row in rows:
        name, colon, value = row.partition(b":")
        if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
            raise MalformedRequest("A header line is not a name, a colon and printable text.")
        fields[name.lower()].append(value.strip(b" \t"))
    return fields


def _check_host(fields: defaultdict[bytes, list[bytes]], *, is_old: bool) -> None:
    hosts = fields[b"host"]
    if is_old and not hosts:
        return
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise MalformedRequest("A request has one Host header, a name or an address and perhaps a port.")


def _read_length(fields: defaultdict[bytes, list[bytes]], *, is_old: bool) -> int | None:
    """Return how many bytes the body has, None for a body in chunks."""
    lengths, codings = fields[b"content-length"], fields[b"transfer-encoding"]
    if fields[b"expect"] and [expected.lower() for expected in fields[b"expect"]] != [b"100-continue"]:
        raise MalformedRequest("The only expectation known is 100-continue.")
    if len(lengths) + len(codings) > 1:
        raise MalformedRequest("A request says the length of its body once.")
    if codings:
        if is_old or codings[0].lower() != b"chunked":
            raise MalformedRequest("The only transfer coding known is chunked, in HTTP/1.1.")
        return None
    length = lengths[0] if lengths else b"0"
    if not length.isdigit():
        raise MalformedRequest("A Content-Length is digits.")
    if len(length) > _MAX_LENGTH_DIGITS:
        raise PayloadTooLarge("No body of this length is read.")
    return int(length)


def _options(fields: defaultdict[bytes, list[bytes]]) -> set[bytes]:
    return {option.strip().lower() for value in fields[b"connection"] for option in value.split(b",")}


def _asks_for_websocket(fields: defaultdict[bytes, list[bytes]]) -> bool:
    if [value.lower() for value in fields[b"upgrade"]] != [b"websocket"] or b"upgrade" not in _options(fields):
        return False
    if len(fields[b"connection"]) > 1:
        raise MalformedRequest("A request for a websocket has one Connection header.")
    return True


def _without_upgrade(line: bytes, rows: list[bytes]) -> bytes:
    """Leave out an upgrade that is not taken, as RFC 9110 allows: the parsers would not agree on what follows it."""
    kept = [row for row in rows if row.partition(b":")[0].lower() != b"upgrade"]
    return b"\r\n".join([line, *kept]) + END
