"""The cache works as the one user that Redis knows, and that user can do nothing else."""

import asyncio
import contextlib
import hashlib
import re

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from foreframe_server.metrics import Metrics
from foreframe_server.redis_link import connect_redis
from foreframe_server.redis_tier import RedisTier

PASSWORD = "a password of the tests"
SECRET = b"s" * 32
PATIENCE_S = 5.0


@pytest.fixture
def guarded_redis(start_redis, deploy, tmp_path):
    users = (deploy / "redis" / "users.acl").read_text()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    (tmp_path / "users.acl").write_text(users.replace("PASSWORD_SHA256", digest))
    lines = (deploy / "redis" / "redis.conf").read_text().splitlines()
    # All of the file but where it listens.
    (tmp_path / "redis.conf").write_text("\n".join(line for line in lines if not line.startswith(("bind", "port"))))
    return start_redis("--include", str(tmp_path / "redis.conf"), "--aclfile", str(tmp_path / "users.acl"))


@pytest.fixture
def connect(guarded_redis):
    with contextlib.ExitStack() as stack:
        yield lambda **who: stack.enter_context(
            redis.Redis(unix_socket_path=str(guarded_redis.socket), retry=Retry(NoBackoff(), 0), **who)
        )


@pytest.fixture
def foreframe(connect):
    return connect(username="foreframe", password=PASSWORD)


async def _store_and_read(url, key, members):
    client = connect_redis(url, PATIENCE_S)
    tier = RedisTier(client, Metrics(), timeout_s=PATIENCE_S, secret=SECRET)
    lease = await tier.lease(key)
    await tier.put(key, members)
    was_held = lease.is_held
    await lease.release()
    again = await tier.lease(key)
    was_held = was_held and again.is_held
    found = await tier.get(key)
    await again.release()
    await tier.close()
    return was_held, found.members


def test_entries_and_leases_work_as_the_user_of_the_cache(guarded_redis, make_key, make_members):
    url = guarded_redis.url.replace("unix://", f"unix://foreframe:{PASSWORD.replace(' ', '%20')}@")
    members = make_members(3)
    is_held, found = asyncio.run(_store_and_read(url, make_key(), members))
    assert is_held
    np.testing.assert_array_equal(np.asarray(found), members)


def test_the_user_may_send_every_command_that_the_server_sends_and_no_other(root, deploy):
    sources = "".join(path.read_text() for path in (root / "server" / "foreframe_server").glob("*.py"))
    sent = set(re.findall(r"""\bcall\(["']([A-Z]+)["']""", sources)) | {"PING", "HELLO", "AUTH", "SELECT"}
    allowed = set(re.findall(r"\+(\S+)", (deploy / "redis" / "users.acl").read_text()))
    assert allowed == {command.lower() for command in sent}


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SCRIPT", "LOAD", "return 1"),
        ("FUNCTION", "LIST"),
        ("MODULE", "LIST"),
        ("SUBSCRIBE", "x"),
        ("SAVE",),
        ("GET", "somebody-elses"),
        ("SET", "somebody-elses", "1"),
        ("DEL", "somebody-elses"),
    ],
    ids=" ".join,
)
def test_nothing_else_is_allowed(foreframe, command):
    with pytest.raises(NoPermissionError):
        foreframe.execute_command(*command)


@pytest.mark.parametrize("script", ["return redis.call('GET', 'other')", "return redis.call('FLUSHALL')"])
def test_scripts_can_do_no_more_than_their_user(foreframe, script):
    with pytest.raises(redis.ResponseError):
        foreframe.eval(script, 0)


def test_nobody_else_comes_in(connect):
    with pytest.raises(AuthenticationError):
        connect().ping()
    with pytest.raises(AuthenticationError):
        connect(username="foreframe", password="wrong").ping()
