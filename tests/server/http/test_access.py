import asyncio
import contextlib
import math
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.staticfiles import StaticFiles

from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.access import (
    ANY_KEY,
    OPEN,
    FailureLimit,
    Gate,
    PolicyMissing,
    allow,
    check_exposure,
    check_policies,
    is_local,
)
from foreframe_server.app import create_app
from foreframe_server.errors import QuotaExceeded
from foreframe_server.key_file import write_key_file
from foreframe_server.keys import Quota, Scope, mint_key
from foreframe_server.opening import given
from foreframe_server.settings import HttpSettings, KeySettings, Settings, SettingsError

pytestmark = pytest.mark.anyio

ROBOT = mint_key("robot", "acme", [Scope.PREDICT])
TWIN = mint_key("twin", "acme", [Scope.PREDICT])
STRANGER = mint_key("stranger", "globex", [Scope.PREDICT, Scope.LIKELIHOOD])
READER = mint_key("reader", "acme", [Scope.LIKELIHOOD])
SCRAPER = mint_key("scraper", "ops", [Scope.METRICS])
OLD = mint_key("old", "acme", Scope, expires=datetime.now(UTC) - timedelta(seconds=1))
POOR = mint_key("poor", "acme", Scope, quota=Quota(step_ms_per_s=0.001, burst_step_ms=0.001))
MINTED = (ROBOT, TWIN, STRANGER, READER, SCRAPER, OLD, POOR)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def as_key(minted):
    return {"authorization": f"Bearer {minted.token}"}


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, [minted.key for minted in MINTED])
    return path


def settings_of(path, **changes):
    return Settings(keys=KeySettings(file=path, **changes))


@pytest.fixture
def guarded(keys):
    """An app with keys, on toys of both kinds."""
    likelihood = ToyLikelihoodEngine()
    return create_app(settings_of(keys), given(ToyRolloutEngine(likelihood.contract), likelihood))


@pytest.fixture
async def client(anyio_backend, guarded, serving):
    async with serving(guarded) as client:
        yield client


async def ask(client, minted, request, path="/v1/predictions", **headers):
    return await client.post(path, json=request, headers={**as_key(minted), **headers})


async def test_a_right_key_is_served(client, toy_request, likelihood_request):
    assert (await ask(client, ROBOT, toy_request())).status_code == 200
    assert (await ask(client, READER, likelihood_request(), "/v1/likelihoods")).status_code == 200
    assert (await client.get("/metrics", headers=as_key(SCRAPER))).status_code == 200
    for minted in (ROBOT, READER, SCRAPER):
        assert (await client.get("/v1/models", headers=as_key(minted))).status_code == 200


async def test_openpi_s_scheme_is_read_too_and_the_scheme_s_case_does_not_matter(client, toy_request):
    for scheme in ("Api-Key", "bearer", "BEARER"):
        reply = await client.post(
            "/v1/predictions", json=toy_request(), headers={"authorization": f"{scheme} {ROBOT.token}"}
        )
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {ROBOT.token}", ROBOT.token, f"Bearer {ROBOT.token}x",
     f"Bearer nobody.{ROBOT.token.split('.')[1]}", f"Bearer {ROBOT.token},{ROBOT.token}"],
    ids=["absent", "empty", "scheme alone", "scheme and a blank", "another scheme", "no scheme", "too long",
         "another id", "twice"],
)  # fmt: skip
async def test_anything_else_is_unauthorized(client, toy_request, header):
    headers = {} if header is None else {"authorization": header}
    reply = await client.post("/v1/predictions", json=toy_request(), headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert ROBOT.token not in reply.text


async def test_two_keys_in_one_request_are_none(client, toy_request):
    headers = [("authorization", f"Bearer {ROBOT.token}"), ("authorization", f"Bearer {TWIN.token}")]
    assert (await client.post("/v1/predictions", json=toy_request(), headers=headers)).status_code == 401


async def test_an_unknown_id_and_a_wrong_secret_hear_the_same(client):
    texts = []
    for token in (f"robot.{'A' * 43}", f"nobody.{'A' * 43}", "no key at all"):
        reply = await client.get("/v1/models", headers={"authorization": f"Bearer {token}"})
        body = {**reply.json(), "request_id": ""}
        texts.append((reply.status_code, body, sorted(reply.headers.keys())))
    assert texts[0] == texts[1] == texts[2]


async def test_a_key_without_the_scope_is_told_which_it_needs(client, toy_request, likelihood_request):
    for minted, path, request, scope in (
        (READER, "/v1/predictions", toy_request(), "predict"),
        (ROBOT, "/v1/likelihoods", likelihood_request(), "likelihood"),
        (SCRAPER, "/v1/observations", toy_request(), "likelihood or predict"),
    ):
        reply = await ask(client, minted, request, path)
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
        assert scope in reply.json()["detail"]
    assert (await client.get("/metrics", headers=as_key(ROBOT))).status_code == 403


async def test_an_expired_key_is_told_so(client):
    reply = await client.get("/v1/models", headers=as_key(OLD))
    assert (reply.status_code, reply.json()["detail"]) == (401, "The key has expired.")


async def test_a_refusal_comes_before_the_body_is_read(client):
    async def endless():
        yield b"{"
        raise AssertionError("the body was read")

    reply = await client.post("/v1/predictions", content=endless())
    assert reply.status_code == 401


@contextlib.contextmanager
def clocked_gate(app, path, **changes):
    """Let a test decide what time it is at the gate."""
    clock = Clock()
    app.state.gate = Gate(settings_of(path, **changes), clock=clock)
    yield clock


async def test_keys_come_and_go_without_a_restart(client, guarded, keys):
    late = mint_key("late", "acme", [Scope.PREDICT])
    with clocked_gate(guarded, keys) as clock:
        assert (await client.get("/v1/models", headers=as_key(late))).status_code == 401
        write_key_file(keys, [late.key])
        clock.now = 1
        assert (await client.get("/v1/models", headers=as_key(late))).status_code == 200
        assert (await client.get("/v1/models", headers=as_key(ROBOT))).status_code == 401


async def test_a_file_without_keys_lets_nobody_in(client, guarded, keys):
    write_key_file(keys, [])
    with clocked_gate(guarded, keys):
        assert (await client.get("/v1/models", headers=as_key(ROBOT))).status_code == 401
        assert (await client.get("/healthz")).status_code == 200


async def test_wrong_keys_are_slowed_and_right_ones_from_their_address_are_not(client, guarded, keys):
    with clocked_gate(guarded, keys) as clock:
        wrong = {"authorization": "Bearer robot.AAAAAAAAAAAAAAAAAAAAAAAA"}
        statuses = [(await client.get("/v1/models", headers=wrong)).status_code for _ in range(11)]
        refused = await client.get("/v1/models", headers=wrong)

        assert statuses == [401] * 10 + [429]
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("quota_exceeded", "60")
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers=as_key(ROBOT))).status_code == 200
        clock.now = 60
        assert (await client.get("/v1/models", headers=wrong)).status_code == 401


def test_failures_are_counted_by_address_in_bounded_memory():
    limit = FailureLimit(1, Clock())
    limit.count("a")
    limit.count("b")
    with pytest.raises(QuotaExceeded):
        limit.count("a")
    for number in range(10_000):
        limit.count(str(number))
    assert len(limit._failures) == 4096


async def test_a_key_finds_its_quota_among_the_limits(client):
    poor, robot = [(await client.get("/v1/limits", headers=as_key(key))).json()["quota"] for key in (POOR, ROBOT)]

    assert poor == {"step_ms_per_s": 0.001, "burst_step_ms": 0.001}
    assert robot is None


async def test_a_key_that_used_its_quota_is_told_when_to_come_again(client, toy_request):
    first = await ask(client, POOR, toy_request())
    second = await ask(client, POOR, toy_request(sampling__seed=8))

    assert first.status_code == 200
    assert (second.status_code, second.json()["code"]) == (429, "quota_exceeded")
    assert second.json()["retryable"]
    assert int(second.headers["retry-after"]) > 0
    assert (await ask(client, ROBOT, toy_request(sampling__seed=8))).status_code == 200
    assert (await client.get("/v1/models", headers=as_key(POOR))).status_code == 200


async def test_token_reads_count_too(client, likelihood_request):
    statuses = [(await ask(client, POOR, likelihood_request(), "/v1/likelihoods")).status_code for _ in range(2)]
    assert statuses == [200, 429]


async def test_results_are_shared_inside_a_tenant_and_not_outside(client, toy_request):
    replies = {minted.key.id: (await ask(client, minted, toy_request())).json() for minted in (ROBOT, TWIN, STRANGER)}
    assert {name: reply["cache"] for name, reply in replies.items()} == {
        "robot": "miss", "twin": "hit", "stranger": "miss"
    }  # fmt: skip
    assert replies["stranger"]["frames"] == replies["robot"]["frames"]


async def test_equal_requests_of_two_tenants_at_once_are_computed_apart(client, toy_request):
    minted = [ROBOT, TWIN, STRANGER] * 2
    replies = await asyncio.gather(*(ask(client, each, toy_request(ensemble={"size": 4})) for each in minted))
    caches = [(each.key.tenant, reply.json()["cache"]) for each, reply in zip(minted, replies, strict=True)]
    assert sorted(tenant for tenant, cache in caches if cache == "miss") == ["acme", "globex"]
    assert {cache for _, cache in caches} <= {"miss", "joined", "hit"}


def kolmogorov_smirnov(one, other):
    """The p value of two samples of one size coming from one distribution."""
    size, merged = len(one), sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    gap, worst = 0, 0
    for _, which in merged:
        gap += 1 if which else -1
        worst = max(worst, abs(gap))
    scaled = worst / size * (math.sqrt(size / 2) + 0.12 + 0.11 / math.sqrt(size / 2))
    tail = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, tail)) if scaled > 0.2 else 1.0


async def took(client, minted, request):
    started = time.perf_counter()
    reply = await ask(client, minted, request)
    assert reply.status_code == 200
    return time.perf_counter() - started


async def compare_tenants(client, toy_request, first, count):
    """Whether the second asker of a request can tell from the time that somebody else asked it before."""
    asked, fresh = [], []
    for seed in range(count):
        request = toy_request(sampling__seed=1000 + seed)
        await took(client, first, request)
        asked.append(await took(client, STRANGER, request))
        fresh.append(await took(client, STRANGER, toy_request(sampling__seed=10_000 + seed)))
    return kolmogorov_smirnov(asked, fresh)


async def test_the_time_of_an_answer_does_not_tell_what_another_tenant_asked(client, toy_request):
    # Where there is no difference, one comparison of a thousand shows one all the same.
    assert max([await compare_tenants(client, toy_request, ROBOT, 100) for _ in range(2)]) > 0.001


async def test_the_time_of_an_answer_tells_what_the_own_tenant_asked(client, toy_request):
    assert await compare_tenants(client, toy_request, STRANGER, 50) < 0.001


async def test_observations_are_their_tenant_s(client, toy_request):
    held = (await ask(client, ROBOT, {"observation": toy_request()["observation"]}, "/v1/observations")).json()
    request = toy_request(observation=..., observation_id=held["observation_id"])
    path = f"/v1/observations/{held['observation_id']}"

    assert (await ask(client, STRANGER, request)).status_code == 410
    assert (await client.delete(path, headers=as_key(STRANGER))).status_code == 410
    assert (await ask(client, TWIN, request)).status_code == 200
    assert (await client.delete(path, headers=as_key(TWIN))).status_code == 204


async def test_sessions_are_their_tenant_s(client, toy_request):
    started = await ask(client, ROBOT, {"observation": toy_request()["observation"]}, "/v1/sessions")
    path = f"/v1/sessions/{started.json()['session_id']}"
    step = {"future": {"values": toy_request()["future"]["values"]}}

    assert (await client.get(path, headers=as_key(STRANGER))).status_code == 404
    assert (await ask(client, STRANGER, step, f"{path}/steps")).status_code == 404
    assert (await client.delete(path, headers=as_key(STRANGER))).status_code == 404
    assert (await client.get(path, headers=as_key(TWIN))).status_code == 200
    assert (await client.delete(path, headers=as_key(TWIN))).status_code == 204


async def test_a_websocket_needs_a_key_before_it_is_accepted(client, guarded, arriving):
    for headers in ({}, {"authorization": "Bearer robot.AAAAAAAAAAAAAAAAAAAAAA"}, as_key(SCRAPER)):
        async with arriving(guarded, **headers) as robot:
            await robot.ended()
        assert not robot.is_accepted
        assert robot.denied[0]["status"] in (401, 403)


async def test_every_message_of_a_websocket_is_for_its_key_s_scopes(client, guarded, connecting, toy_request):
    async with connecting(guarded, **as_key(ROBOT)) as robot:
        assert (await robot.ask("predict", **toy_request()))["type"] == "done"
        assert (await robot.ask("likelihood"))["body"]["code"] == "forbidden"
    async with connecting(guarded, **as_key(READER)) as robot:
        for kind in ("predict", "score", "reset", "step"):
            assert (await robot.ask(kind, session_id="s"))["body"]["code"] == "forbidden"


async def test_a_revoked_key_is_refused_on_a_connection_that_is_open(client, guarded, keys, connecting, toy_request):
    with clocked_gate(guarded, keys) as clock:
        async with connecting(guarded, **as_key(ROBOT)) as robot:
            assert (await robot.ask("predict", **toy_request()))["type"] == "done"
            write_key_file(keys, [TWIN.key])
            clock.now = 1
            refused = await robot.ask("predict", **toy_request())
    assert (refused["type"], refused["body"]["code"]) == ("error", "unauthorized")


async def test_a_websocket_s_quota_is_its_key_s(client, guarded, connecting, toy_request):
    async with connecting(guarded, **as_key(POOR)) as robot:
        assert (await robot.ask("predict", **toy_request()))["type"] == "done"
        assert (await robot.ask("predict", **toy_request(sampling__seed=9)))["body"]["code"] == "quota_exceeded"


@pytest.mark.parametrize("path", ["/", "/openpi/policy", "/v1/realtime/robot/openpi"])
async def test_openpi_s_websockets_need_a_key(client, guarded, arriving, path):
    async with arriving(guarded, path=path) as robot:
        await robot.ended()
    assert robot.denied[0]["status"] == 401
    async with arriving(guarded, path=path, authorization=f"Api-Key {ROBOT.token}") as robot:
        await robot.next()
    assert robot.is_accepted


async def test_inference_of_likelihoods_needs_their_scope(client):
    body = {"inputs": []}
    assert (await ask(client, ROBOT, body, "/v2/models/world_model_likelihood/infer")).status_code == 403
    assert (await ask(client, READER, body, "/v2/models/world_model/infer")).status_code == 403
    assert (await ask(client, ROBOT, body, "/v2/models/world_model/infer")).status_code == 422


async def test_without_keys_everybody_on_this_machine_is_served(serving, engine, toy_request):
    async with serving(create_app(Settings(), given(engine))) as client:
        for headers in ({}, {"authorization": "Bearer anything"}):
            assert (await client.post("/v1/predictions", json=toy_request(), headers=headers)).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "robot.local", "127.0.0.1.example.com"])
def test_a_network_without_keys_stops_the_start(host, keys):
    http = HttpSettings(host=host)
    with pytest.raises(SettingsError, match="foreframe keys create"):
        create_app(Settings(http=http))
    with pytest.raises(SettingsError, match="foreframe keys create"):
        create_app(Settings(http=HttpSettings(admin_host=host, admin_port=0)))
    check_exposure(Settings(http=http, keys=KeySettings(file=keys)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", "unix:/run/foreframe.sock"])
def test_this_machine_alone_needs_no_keys(host):
    assert is_local(host)
    check_exposure(Settings(http=HttpSettings(host=host)))


def test_a_bad_file_of_keys_stops_the_start(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(SettingsError, match=r"none\.json"):
        create_app(settings_of(path))


def route_of(*dependencies, kind="get"):
    app, router = FastAPI(openapi_url=None), APIRouter(dependencies=dependencies)

    async def answer() -> None: ...

    if kind == "websocket":
        router.add_api_websocket_route("/planted", answer)
    else:
        router.add_api_route("/planted", answer)
    app.include_router(router, prefix="/deep")
    return app


@pytest.mark.parametrize("kind", ["get", "websocket"])
def test_a_route_without_exactly_one_policy_stops_the_start(kind):
    for policies in ((), (OPEN, allow(Scope.ADMIN)), (ANY_KEY, allow(Scope.PREDICT))):
        app = route_of(*policies, kind=kind)
        with pytest.raises(PolicyMissing, match="/deep/planted"):
            check_policies(app)
    check_policies(route_of(OPEN, kind=kind))


def test_the_framework_s_own_pages_and_mounted_apps_are_no_way_around(tmp_path):
    with pytest.raises(PolicyMissing, match="openapi"):
        check_policies(FastAPI())
    mounted = FastAPI(openapi_url=None)
    mounted.mount("/files", StaticFiles(directory=tmp_path))
    with pytest.raises(PolicyMissing, match="files"):
        check_policies(mounted)


def test_a_policy_of_no_scope_is_no_policy():
    with pytest.raises(ValueError, match="OPEN"):
        allow()


async def test_operators_routes_hide_from_the_public_where_they_have_a_listener(client, guarded, keys):
    guarded.state.gate = Gate(Settings(keys=KeySettings(file=keys), http=HttpSettings(admin_port=0)))

    async def as_operator(scope, receive, send):
        await guarded({**scope, "state": {"listener": "admin"}}, receive, send)

    assert (await client.get("/metrics", headers=as_key(SCRAPER))).status_code == 404
    assert (await client.get("/healthz")).status_code == 200
    transport = httpx.ASGITransport(as_operator)
    async with httpx.AsyncClient(transport=transport, base_url="http://ops") as operator:
        assert (await operator.get("/metrics", headers=as_key(SCRAPER))).status_code == 200
        assert (await operator.get("/metrics")).status_code == 401
        assert (await operator.get("/healthz")).status_code == 200
