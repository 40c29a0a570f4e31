"""Every route of the app, by every wrong key, trick of path and Host, and site: none gets through that should not.

A new route needs a line in `route_table.txt`: it is read by a person, as it says who may ask.
"""

from pathlib import Path
from urllib.parse import unquote

import pytest
from fastapi import Response, WebSocket
from fastapi.routing import iter_route_contexts

from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.access import ANY_KEY, OPEN, Policy
from foreframe_server.app import create_app
from foreframe_server.key_file import write_key_file
from foreframe_server.keys import Scope, mint_key
from foreframe_server.opening import given
from foreframe_server.settings import HttpSettings, KeySettings, Settings

pytestmark = pytest.mark.anyio

TABLE = Path(__file__).parent / "route_table.txt"
OPEN_PATHS = {
    "GET /", "GET /assets/{version}/{name}", "GET /docs", "GET /healthz", "GET /openapi.json", "GET /readyz", "GET /v2",
    "GET /v2/health/live", "GET /v2/health/ready", "GET /version",
}  # fmt: skip
NOBODY, EVERYTHING = mint_key("nobody", "acme", [Scope.METRICS]), mint_key("all", "acme", Scope)
FILL = {"id": "toy", "name": "toy", "version": "1", "rest:path": "x", "index": "0"}


def policy_of(route):
    (policy,) = [each.call for each in route.dependant.dependencies if isinstance(each.call, Policy)]
    return policy


def words_of(policy):
    if policy == OPEN.dependency:
        return "open"
    words = "any key" if policy == ANY_KEY.dependency else " or ".join(sorted(policy.scopes))
    return f"{words}, operators" if policy.is_operational else words


def routes_of(app):
    """Every route as `METHOD template`, with its policy."""
    found = {}
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ["WS"]):
            found[f"{method} {route.path}"] = policy_of(route)
    return found


def fill(template):
    path = template
    for name, value in FILL.items():
        path = path.replace("{" + name + "}", value)
    return path


TRICKS = {
    "as it is": lambda path: (path, {}),
    "slash before": lambda path: ("/" + path, {}),
    "slash after": lambda path: (path + "/", {}),
    "slashes inside": lambda path: (path.replace("/", "//"), {}),
    "dot": lambda path: ("/." + path, {}),
    "up from a page": lambda path: ("/docs/.." + path, {}),
    "down to a page": lambda path: (path + "/../../healthz", {}),
    "escaped dots": lambda path: (path + "/%2e%2e/%2e%2e/healthz", {}),
    "escaped slash": lambda path: (path.replace("/", "%2f"), {}),
    "escaped letters": lambda path: ("/" + "".join(f"%{ord(letter):02x}" for letter in path[1:]), {}),
    "escaped twice": lambda path: (path.replace("/", "%252f"), {}),
    "zero byte": lambda path: (path + "%00", {}),
    "line break": lambda path: (path + "%0a", {}),
    "semicolon": lambda path: (path + ";/healthz", {}),
    "backslash": lambda path: (path.replace("/", "\\"), {}),
    "capitals": lambda path: (path.upper(), {}),
    "query that is a path": lambda path: (path + "?/healthz", {}),
    "key in the query": lambda path: (path + "?authorization=Bearer%20x&api_key=x", {}),
    "fragment": lambda path: (path + "%23/healthz", {}),
    "whole address": lambda path: ("http://robot" + path, {}),
    "Host with a path": lambda path: (path, {"host": "robot/healthz?"}),
    "Host with a fragment": lambda path: (path, {"host": "robot/docs#"}),
    "empty Host": lambda path: (path, {"host": ""}),
    "other Host": lambda path: (path, {"host": "127.0.0.1:8000", "x-forwarded-host": "localhost"}),
    "rewriting headers": lambda path: (
        path,
        {"x-original-url": "/healthz", "x-rewrite-url": "/healthz", "x-http-method-override": "GET",
         "x-forwarded-for": "127.0.0.1", "x-forwarded-prefix": "/healthz"},
    ),
}  # fmt: skip
STATES = {
    "no key": {},
    "bad key": {"authorization": f"Bearer all.{'A' * 43}"},
    "wrong scope": {"authorization": f"Bearer {NOBODY.token}"},
    "key without its scheme": {"authorization": EVERYTHING.token},
}


async def send(app, method, target, headers, messages=None):
    """Send one request as a server would hand it over; returns its status, 101 for a websocket, and its template.

    messages: what it goes on with, less what was read of it.
    """
    path, _, query = target.partition("?")
    is_websocket = method == "WS"
    scope = {
        "type": "websocket" if is_websocket else "http", "http_version": "1.1", "path": unquote(path),
        "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1),
        "scheme": "ws" if is_websocket else "http", "method": method, "server": ("robot", 80), "subprotocols": [],
        "headers": [(name.encode(), value.encode()) for name, value in {"host": "robot", **headers}.items()],
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    if is_websocket:
        del scope["method"]
    statuses = []
    if messages is None:
        messages = [{"type": "websocket.connect"}] if is_websocket else [{"type": "http.request", "body": b""}]

    async def receive():
        return messages.pop() if messages else {"type": f"{scope['type']}.disconnect", "code": 1001}

    async def take(message):
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            statuses.append(message["status"])
        elif message["type"] in ("websocket.accept", "websocket.close"):
            statuses.append(101 if message["type"] == "websocket.accept" else 403)

    await app(scope, receive, take)
    return statuses[0], getattr(scope.get("route"), "path", None)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, [NOBODY.key, EVERYTHING.key])
    return path


@pytest.fixture
async def app(anyio_backend, keys, serving):
    app = create_app(Settings(keys=KeySettings(file=keys, max_failures=10**9)), given(ToyRolloutEngine()))
    async with serving(app):
        yield app


def is_right(method, template, state):
    """Whether a caller may have got through: to what is open, or with a key whose scopes do."""
    is_for_any = state == "wrong scope" and TABLE_OF_POLICIES[f"{method} {template}"] in ANY_OR_METRICS
    return f"{method} {template}" in OPEN_PATHS or is_for_any


ANY_OR_METRICS = {"any key", "metrics, operators"}
TABLE_OF_POLICIES = dict(line.split(" | ")[::-1] for line in TABLE.read_text(encoding="utf-8").splitlines())


async def find_intruders(app):
    """Every way through that is not right, and how many ways were tried."""
    intruders, count = [], 0
    for route in routes_of(app):
        method, template = route.split(" ", 1)
        for trick, change in TRICKS.items():
            target, changed = change(fill(template))
            for state, headers in STATES.items():
                status, reached = await send(app, method, target, {**headers, **changed})
                count += 1
                if status < 400 and not is_right(method, reached, state):
                    intruders.append((route, trick, state, status))
    return intruders, count


async def test_no_trick_gets_through_any_route_without_its_key(app):
    intruders, count = await find_intruders(app)

    assert intruders == []
    assert count == len(routes_of(app)) * len(TRICKS) * len(STATES)
    assert len(TRICKS) == 25


async def test_a_hole_that_is_planted_is_found(app):
    async def answer() -> Response:
        return Response("secret")

    app.router.add_api_route("/v1/planted", answer, dependencies=[OPEN])
    TABLE_OF_POLICIES["GET /v1/planted"] = "admin"
    try:
        intruders, _ = await find_intruders(app)
    finally:
        del TABLE_OF_POLICIES["GET /v1/planted"]
    assert {route for route, *_ in intruders} == {"GET /v1/planted"}
    assert {state for *_, state, _ in intruders} == set(STATES)


async def test_a_right_key_gets_to_every_route(app):
    for route in routes_of(app):
        method, template = route.split(" ", 1)
        status, _ = await send(app, method, fill(template), {"authorization": f"Bearer {EVERYTHING.token}"})
        assert status not in (401, 403), route


def test_every_route_and_who_may_ask_has_been_reviewed():
    found = {route: words_of(policy) for route, policy in routes_of(create_app(Settings())).items()}
    assert found == TABLE_OF_POLICIES
    assert {route for route, policy in found.items() if policy == "open"} == OPEN_PATHS


HOST = "localhost:8000"
OWN_SITES = {
    "no browser": {"host": HOST},
    "the server's own page": {"host": HOST, "origin": f"http://{HOST}"},
    "its page over TLS": {"host": "127.0.0.1", "origin": "https://127.0.0.1"},
    "its page at an IPv6 address": {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
}
OTHER_SITES = {
    "another site": {"host": HOST, "origin": "https://elsewhere.example"},
    "a page of no site": {"host": HOST, "origin": "null"},
    "an empty origin": {"host": HOST, "origin": ""},
    "another server of this machine": {"host": HOST, "origin": "http://localhost:3000"},
    "another name of this machine": {"host": HOST, "origin": "http://127.0.0.1:8000"},
}
REBOUND = {
    "a rebound name": {"host": "rebound.example:8000"},
    "a page of a rebound name": {"host": "rebound.example:8000", "origin": "http://rebound.example:8000"},
    "a rebound name that begins well": {"host": "localhost.rebound.example"},
    "an address of the network": {"host": "192.168.1.7:8000"},
    "every address": {"host": "0.0.0.0:8000"},
    "no name": {"host": ""},
}


@pytest.fixture
async def keyless(anyio_backend, serving):
    app = create_app(Settings(), given(ToyRolloutEngine()))
    async with serving(app):
        yield app


async def find_admitted(app, sites, key=None):
    """Every route that a site got through, or whose body was read for it, and how many ways were tried."""
    admitted, count = [], 0
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ["WS"]):
            for site, headers in sites.items():
                body = [{"type": "websocket.connect" if method == "WS" else "http.request", "body": b"{}"}]
                sent = {**headers, **({} if key is None else {"authorization": f"Bearer {key.token}"})}
                status, _ = await send(app, method, fill(route.path), sent, body)
                count += 1
                if status != 403 or (method != "WS" and not body):
                    admitted.append((f"{method} {route.path}", site))
    return admitted, count


async def test_no_other_site_s_page_gets_through_any_route(keyless):
    admitted, count = await find_admitted(keyless, OTHER_SITES)
    assert admitted == []
    assert count == len(OTHER_SITES) * len(TABLE_OF_POLICIES)


async def test_no_other_site_s_page_gets_through_with_a_key(app):
    admitted, _ = await find_admitted(app, OTHER_SITES, EVERYTHING)
    assert admitted == []


async def test_no_rebound_name_gets_through_any_route_without_keys(keyless):
    admitted, count = await find_admitted(keyless, REBOUND)
    assert admitted == []
    assert count == len(REBOUND) * len(TABLE_OF_POLICIES)


async def test_the_server_s_own_pages_and_other_programs_get_to_every_route(keyless):
    admitted, _ = await find_admitted(keyless, OWN_SITES)
    assert {(route, site) for route in TABLE_OF_POLICIES for site in OWN_SITES} == set(admitted)


async def test_with_keys_any_name_of_the_server_will_do(app):
    host = "robots.example:8443"
    names = {
        "a proxy's name": {"host": host},
        "its page": {"host": host, "origin": f"https://{host}"},
        "a pod's address": {"host": "10.244.0.7:9000"},
    }
    admitted, _ = await find_admitted(app, names, EVERYTHING)
    assert {(route, name) for route in TABLE_OF_POLICIES for name in names} == set(admitted)


async def test_a_route_that_asks_no_policy_is_found(keyless):
    async def answer() -> Response:
        return Response("done")

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()

    keyless.router.add_api_route("/v1/planted", answer, methods=["GET", "POST"])
    keyless.router.add_api_websocket_route("/v1/planted", talk)
    for sites in (OTHER_SITES, REBOUND):
        admitted, _ = await find_admitted(keyless, sites)
        planted = ("GET /v1/planted", "POST /v1/planted", "WS /v1/planted")
        assert set(admitted) == {(route, site) for route in planted for site in sites}


async def test_configured_names_and_sites_get_to_every_route(anyio_backend, serving):
    http = HttpSettings(hosts="robots.example", origins="https://dashboard.example")
    sites = {"both": {"host": "robots.example:8000", "origin": "https://dashboard.example"}}
    configured = create_app(Settings(http=http), given(ToyRolloutEngine()))
    async with serving(configured):
        admitted, _ = await find_admitted(configured, sites)
    assert {route for route, _ in admitted} == set(TABLE_OF_POLICIES)


async def test_ten_thousand_paths_and_models_add_no_series(app):
    key = {"authorization": f"Bearer {EVERYTHING.token}"}

    def series():
        return {line.rsplit(" ", 1)[0] for line in app.state.host.metrics.scrape().decode().splitlines()}

    async def wander(start, end):
        for index in range(start, end):
            await send(app, "GET", f"/planted-{index}", {})
            await send(app, ("GET", "POST", f"X{index}")[index % 3], f"/v1/models/planted-{index}", key)

    await wander(0, 3)
    before = series()
    await wander(3, 5000)
    assert series() == before
