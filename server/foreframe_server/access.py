"""Who may do what: every route declares a policy, which names the caller before the route runs. It knows no route.

A policy is a dependency of the matched route, so that no path, Host or method can lead around it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from fastapi import Depends, FastAPI, params
from fastapi.routing import iter_route_contexts
from starlette.requests import HTTPConnection

from foreframe_server.errors import Forbidden, QuotaExceeded, Unauthorized
from foreframe_server.key_file import WatchedKeys
from foreframe_server.keys import Key, KeyFileError, Quota, Scope
from foreframe_server.problems import NotFound
from foreframe_server.quotas import Quotas
from foreframe_server.settings import Settings, SettingsError
from foreframe_server.sites import Sites, is_loopback

ADMIN_LISTENER: Final = "admin"
"""What the door writes into `scope["state"]["listener"]` for connections of the operators' listener."""

_SCHEMES = frozenset({"bearer", "api-key"})
"""`Api-Key` is what openpi's clients say."""

_UNIX_PREFIX = "unix:"
_WORK = frozenset({Scope.PREDICT, Scope.LIKELIHOOD})
_MAX_ADDRESSES = 4096
_MINUTE_S = 60.0


class PolicyMissing(RuntimeError):
    """A route declares no policy, or more than one; nothing is served then."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Callers of one tenant share results and sessions; those of a server without keys are all one."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    quota: Quota | None = None


ANYBODY: Final = Caller("", "", frozenset(Scope))
"""The one caller of a server without keys."""

_STRANGER: Final = Caller("", "", frozenset())


@dataclass(frozen=True, slots=True)
class _Entrance:
    """How a caller came in; `key` is None where none was needed."""

    gate: "Gate"
    caller: Caller
    key: Key | None = None


_entrance: ContextVar[_Entrance] = ContextVar("foreframe_entrance")


def current_caller() -> Caller:
    """Return who asks, in the request's task and those that it started, or in a thread that works for them.

    Raises Unauthorized when the key was revoked or has expired since its connection was opened.
    """
    entrance = _entrance.get()
    if entrance.key is not None:
        entrance.gate.check_current(entrance.key)
    return entrance.caller


def paying_caller() -> Caller:
    """Return who asks for work. Raises as `current_caller`, and QuotaExceeded when the key's quota is used up."""
    caller = current_caller()
    _entrance.get().gate.quotas.check(caller.key_id, caller.quota)
    return caller


def require(scope: Scope) -> None:
    """Refuse a caller whose key has not this scope, where one route takes several kinds of work. Raises Forbidden."""
    if scope not in current_caller().scopes:
        raise _forbidden(frozenset({scope}))


@dataclass(frozen=True, slots=True)
class Policy:
    """What a route asks of its caller: one of these scopes, or nothing. Made by `allow`, or is `OPEN`.

    is_operational: it answers on the operators' listener alone, where there is one.
    """

    scopes: frozenset[Scope] = frozenset()
    is_operational: bool = False

    async def __call__(self, connection: HTTPConnection) -> None:
        """Let a request or a websocket in. Raises Unauthorized, Forbidden, QuotaExceeded or NotFound."""
        entrance = gate_of(connection).admit(connection, self)
        connection.state.caller = entrance.caller
        _entrance.set(entrance)


def allow(*scopes: Scope, is_operational: bool = False) -> params.Depends:
    """Declare that a route is for keys with any of these scopes."""
    if not scopes:
        raise ValueError("a policy without scopes is OPEN")
    dependency: params.Depends = Depends(Policy(frozenset(scopes), is_operational))
    return dependency


OPEN: Final[params.Depends] = Depends(Policy())
"""Declares that a route is for everybody: health, the version and the pages."""

ANY_KEY: Final = allow(*Scope)
"""Declares that a route is for every key, whatever its scopes."""


@dataclass(slots=True)
class _Failures:
    count: int
    until_s: float


@dataclass(slots=True, eq=False)
class FailureLimit:
    """Counts wrong keys of each address, so many a minute, of at most 4,096 addresses at once.

    It slows those who guess or are set up wrongly; a right key passes whatever else came from its address, as a fleet
    behind one address must not be shut out by one of its robots.
    """

    max_a_minute: int
    clock: Callable[[], float] = time.monotonic
    _failures: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)

    def count(self, address: str) -> None:
        """Book a wrong key. Raises QuotaExceeded when there were too many."""
        now_s = self.clock()
        failures = self._failures.pop(address, None)
        if failures is None or failures.until_s <= now_s:
            failures = _Failures(0, now_s + _MINUTE_S)
        failures.count += 1
        self._failures[address] = failures
        if len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if failures.count > self.max_a_minute:
            retry_after_ms = math.ceil(1000 * (failures.until_s - now_s))
            raise QuotaExceeded("Too many wrong keys came from this address.", retry_after_ms=retry_after_ms)


class Gate:
    """Lets callers in, by the keys of the settings' file or, where there is none, everybody.

    Where operators have a listener of their own, operational routes are hidden from the public one. Only the event
    loop's thread may call; `quotas` is for any. Raises SettingsError when the file of keys cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.quotas = Quotas(clock)
        self._sites = Sites.read(settings.http, has_keys=settings.keys.file is not None)
        self._has_admin_listener = settings.http.admin_port is not None
        self._now = now
        self._failures = FailureLimit(settings.keys.max_failures, clock)
        try:
            self._keys = None if settings.keys.file is None else WatchedKeys(settings.keys.file, clock)
        except KeyFileError as error:
            raise SettingsError(str(error)) from error

    def admit(self, connection: HTTPConnection, policy: Policy) -> _Entrance:
        """Find out who asks. Raises as `Policy.__call__`."""
        if policy.is_operational and self._has_admin_listener and _listener(connection) != ADMIN_LISTENER:
            raise NotFound("This server has no such path.")
        self._sites.check(connection.headers)
        if not policy.scopes:
            return _Entrance(self, _STRANGER)
        if self._keys is None:
            return _Entrance(self, ANYBODY)
        key = self._prove(connection, self._keys)
        if not key.scopes & policy.scopes:
            raise _forbidden(policy.scopes)
        if connection.scope.get("method") == "POST" and policy.scopes <= _WORK:
            self.quotas.check(key.id, key.quota)  # before its body is read
        return _Entrance(self, Caller(key.id, key.tenant, key.scopes, key.quota), key)

    def check_current(self, key: Key) -> None:
        """Refuse a key that is not valid any more. Raises Unauthorized."""
        if self._keys is None or not self._keys.ring().has(key):
            raise Unauthorized("The key is not valid any more.")
        self._check_time(key)

    def _prove(self, connection: HTTPConnection, keys: WatchedKeys) -> Key:
        sent = connection.headers.getlist("authorization")
        if not sent:
            raise Unauthorized("This needs a key, as `Authorization: Bearer id.secret`.")
        key = keys.ring().find(_token(sent))
        if key is None:
            self._failures.count(connection.client.host if connection.client else "")
            raise Unauthorized("The key is not valid.")
        self._check_time(key)
        return key

    def _check_time(self, key: Key) -> None:
        if key.has_expired(self._now()):
            raise Unauthorized("The key has expired.")


def gate_of(connection: HTTPConnection) -> Gate:
    """Return the gate of the app that a request or a websocket came to."""
    gate: Gate = connection.app.state.gate
    return gate


def check_policies(app: FastAPI) -> None:
    """Make sure that every route declares exactly one policy. Raises PolicyMissing, which names the route."""
    for route in iter_route_contexts(app.routes):
        count = len(list(_policies(getattr(route, "dependant", None))))
        if count != 1:
            raise PolicyMissing(f"the route {route.path} declares {count} policies; it needs one, such as access.OPEN")


def check_exposure(settings: Settings) -> None:
    """Refuse to listen on a network without keys. Raises SettingsError."""
    http = settings.http
    hosts = [http.host] if http.admin_port is None else [http.host, http.admin_host]
    exposed = [host for host in hosts if not is_local(host)]
    if settings.keys.file is None and exposed:
        raise SettingsError(
            f"without keys the server listens on this machine alone, not on {exposed[0]}; "
            "make some with `foreframe keys create` and name their file in FOREFRAME_KEYS__FILE"
        )


def is_local(host: str) -> bool:
    """Whether nobody outside this machine reaches an address or a socket; of names only `localhost` is known."""
    return host.startswith(_UNIX_PREFIX) or is_loopback(host)


def _policies(dependant: object) -> Iterator[Policy]:
    for dependency in getattr(dependant, "dependencies", ()):
        if isinstance(dependency.call, Policy):
            yield dependency.call


def _token(sent: list[str]) -> str:
    """Return the one key that a request shows; nothing, which is no key, where it shows several or none."""
    scheme, _, token = sent[0].partition(" ")
    return token.strip() if len(sent) == 1 and scheme.lower() in _SCHEMES else ""


def _listener(connection: HTTPConnection) -> object:
    return connection.scope.get("state", {}).get("listener")


def _forbidden(scopes: frozenset[Scope]) -> Forbidden:
    return Forbidden(f"The key needs the scope {' or '.join(sorted(scopes))}.")
