import asyncio
import time

import pytest
import structlog
from redis.asyncio import Redis

from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import CircuitBreaker, Outcome, RedisLink, Reply, connect_redis

PATIENCE_S = 20


def test_the_breaker_opens_after_five_failures_and_tries_once_a_second(fake_clock):
    breaker = CircuitBreaker(fake_clock)
    for _ in range(4):
        breaker.record(is_success=False)
    assert breaker.take_turn()
    breaker.record(is_success=False)
    assert breaker.is_open
    assert not breaker.take_turn()
    fake_clock.now += 1.0
    assert [breaker.take_turn(), breaker.take_turn()] == [True, False]


def test_the_breaker_closes_on_trial(fake_clock):
    breaker = CircuitBreaker(fake_clock)
    for _ in range(5):
        breaker.record(is_success=False)
    breaker.record(is_success=True)
    assert not breaker.is_open
    breaker.record(is_success=False)
    assert breaker.is_open
    for _ in range(2):
        breaker.record(is_success=True)
    assert not breaker.is_in_doubt
    breaker.record(is_success=False)
    assert (breaker.is_open, breaker.is_in_doubt) == (False, True)


def link_to(url, metrics=None, *, timeout_s=5.0, **options):
    return RedisLink(connect_redis(url, timeout_s), metrics or Metrics(), timeout_s=timeout_s, **options)


def test_an_error_of_redis_is_an_answer_and_no_failure_of_the_link(redis_server, events):
    async def scenario():
        metrics = Metrics()
        link = link_to(redis_server.url, metrics)
        await link.call("LPUSH", "list", "item")
        for _ in range(10):
            reply = await link.call("GET", "list")
            assert reply.outcome is Outcome.REFUSED
            assert str(reply.value).startswith("WRONGTYPE")
        assert link.is_available
        assert not link.is_in_doubt
        assert events(metrics) == {"failed": 10}
        await link.close()

    asyncio.run(scenario())


def test_while_the_breaker_is_open_nobody_waits_and_a_ping_finds_redis_back(redis_server, fake_clock, events):
    async def scenario():
        metrics = Metrics()
        link = link_to(redis_server.url, metrics, clock=fake_clock)
        redis_server.kill()
        for _ in range(5):
            await link.call("GET", "anything")
        assert not link.is_available
        redis_server.start()
        assert await link.call("PING") == Reply(Outcome.UNAVAILABLE)
        assert not link._attempts
        fake_clock.now += 1.0
        assert await link.call("PING") == Reply(Outcome.UNAVAILABLE)
        await asyncio.gather(*link._attempts)
        assert link.is_available
        assert link.is_in_doubt
        assert (await link.call("PING")).is_answer
        assert not link.is_in_doubt
        assert events(metrics) == {"failed": 5, "opened": 1, "skipped": 2, "closed": 1}
        await link.close()

    asyncio.run(scenario())


def test_the_log_hears_once_that_redis_is_away_and_once_that_it_is_back(redis_server, fake_clock):
    async def scenario():
        link = link_to(redis_server.url, clock=fake_clock)
        await link.check()
        redis_server.kill()
        await link.check()
        for _ in range(20):
            await link.call("GET", "anything")
        redis_server.start()
        fake_clock.now += 1.0
        link.can_call()
        await asyncio.gather(*link._attempts)
        for _ in range(3):
            assert (await link.call("PING")).is_answer
        await link.close()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    away, back = lines
    assert (away["log_level"], away["setting"]) == ("warning", "FOREFRAME_CACHE__REDIS_URL")
    assert "does not answer" in away["event"]
    assert away["reason"]
    assert (back["log_level"], back["event"]) == ("info", "Redis is back")


def test_what_fails_once_is_no_line(redis_server):
    async def scenario():
        link = link_to(redis_server.url)
        redis_server.kill()
        await link.call("GET", "anything")
        redis_server.start()
        assert (await link.call("PING")).is_answer
        await link.close()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert lines == []


def default_client(server):
    return Redis(unix_socket_path=str(server.socket))


def brief_client(server):
    return connect_redis(server.url)


async def is_answered_within(client, limit_s):
    """Ask once; an error in time is an answer too."""
    asking = asyncio.create_task(client.get("anything"))
    done, _ = await asyncio.wait({asking}, timeout=limit_s)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await client.aclose()
    await client.connection_pool.aclose()
    return bool(done)


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_our_client_gives_up_where_the_one_of_redis_py_by_default_would_wait(redis_server, fault):
    """The planted fault is the default: measured, it waits 4 s for a dead server and over 8 s for one that hangs."""

    async def scenario():
        getattr(redis_server, fault)()
        assert not await is_answered_within(default_client(redis_server), 1.0)
        started_s = time.monotonic()
        assert await is_answered_within(brief_client(redis_server), 1.0)
        assert time.monotonic() - started_s < 0.5

    asyncio.run(scenario())


def test_hanging_up_on_a_dead_redis_is_quiet(redis_server):
    async def scenario():
        link = link_to(redis_server.url)
        await link.call("PING")
        redis_server.kill()
        await link.hang_up()
        await link.close()

    asyncio.run(scenario())


def test_a_call_ends_at_once_when_its_caller_is_cancelled(redis_server):
    """At every turn of the event loop: redis-py alone goes on when it is cancelled while it sends."""

    async def scenario():
        link = link_to(redis_server.url)
        await link.call("PING")
        redis_server.hang()
        for num_turns in range(30):
            calling = asyncio.create_task(link.call("PING"))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            calling.cancel()
            done, _ = await asyncio.wait({calling}, timeout=0.5)
            assert done
            assert calling.cancelled()
        await link.close()

    asyncio.run(scenario())


def test_our_client_tries_once_and_for_20_ms():
    connection = connect_redis("redis://127.0.0.1:1/0").connection_pool.make_connection()
    assert connection.retry.get_retries() == 0
    assert (connection.socket_connect_timeout, connection.socket_timeout) == (0.02, 0.02)
