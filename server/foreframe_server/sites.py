"""Which site a request is for and whose page it comes from, by its Host and Origin headers. It knows no route.

A page's script cannot choose what its browser writes there; a caller that is no browser gains nothing by a lie.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from foreframe_server.errors import Forbidden
from foreframe_server.settings import HttpSettings, SettingsError

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_OWN: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_NAME = r"\[[0-9a-f:.]+\]|[0-9a-z._-]+"
_HOST: Final = re.compile(rf"({_NAME})(?::[0-9]{{1,5}})?")
_ORIGIN: Final = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_NAME})(?::[0-9]{{1,5}})?")


class CrossSite(Forbidden):
    """A browser says that another site's page asks, in the name of whoever looks at it."""

    title = "Other sites' pages may not ask"


class UnknownHost(Forbidden):
    """The request is for another name than the server's: in a browser, a page whose name now leads to this machine."""

    title = "The server does not go by this name"


@dataclass(frozen=True, slots=True)
class Sites:
    """Whom requests may be for and come from.

    hosts: names without ports, beside this machine's addresses; None where every name will do. origins: sites whose
    pages may ask, beside those that are served under the name that they call.
    """

    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()

    @classmethod
    def read(cls, http: HttpSettings, *, has_keys: bool) -> "Sites":
        """Take what the settings say; keys are proof enough of who asks, under any name. Raises SettingsError."""
        hosts = frozenset(_entries("HOSTS", http.hosts, re.compile(_NAME), "a name or an address without a port"))
        origins = _entries("ORIGINS", http.origins, _ORIGIN, "an origin, such as https://robots.example")
        return cls(None if has_keys else _OWN | hosts, frozenset(map(_shortest, origins)))

    def check(self, headers: Headers) -> None:
        """Refuse what is for another host, or comes from another site's page. Raises UnknownHost or CrossSite."""
        hosts, origins = [], []
        for name, value in headers.raw:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name == b"origin":
                origins.append(value.decode("latin-1"))
        host = hosts[0] if len(hosts) == 1 else ""
        if self.hosts is not None and not _is_named(host, self.hosts):
            raise UnknownHost(
                "A server without keys answers to this machine's own names; others, such as a proxy's, "
                "are set in FOREFRAME_HTTP__HOSTS."
            )
        if not all(origin in self.origins or is_same_site(origin, host) for origin in origins):
            raise CrossSite(
                "The Origin header names another site than the Host header; sites whose pages may ask "
                "are set in FOREFRAME_HTTP__ORIGINS."
            )


def is_same_site(origin: str, host: str) -> bool:
    """Whether a page of an origin was served under the name that it calls now."""
    try:
        scheme, netloc = urlsplit(origin)[:2]
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and netloc.lower().removesuffix(port) == host.lower().removesuffix(port) != ""


@lru_cache(maxsize=64)
def _is_named(host: str, names: frozenset[str]) -> bool:
    matched = _HOST.fullmatch(host.lower())
    return matched is not None and (matched[1] in names or is_loopback(matched[1].strip("[]")))


def is_loopback(name: str) -> bool:
    """Whether a name or an address, without brackets, is this machine's own; of names only `localhost` is known."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _entries(setting: str, text: str, pattern: re.Pattern[str], meaning: str) -> Iterator[str]:
    for entry in filter(None, map(str.strip, text.lower().split(","))):
        if not pattern.fullmatch(entry):
            raise SettingsError(f"FOREFRAME_HTTP__{setting}: each entry, with commas between, is {meaning}")
        yield entry


def _shortest(origin: str) -> str:
    """Write an origin as browsers do, which leave its scheme's usual port out."""
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], ""))
