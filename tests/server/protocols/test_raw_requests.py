"""What each parser makes of raw bytes: the guard reads first, so both say the same."""

import asyncio
import json
import random
import resource
import time

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foreframe_server.protocols.server import PROTOCOLS
from foreframe_server.protocols.state import DoorLimits

pytestmark = pytest.mark.anyio

HOST = b"Host: robot.local:8000\r\n"
BODY = b"Content-Length: 4\r\n\r\nabcd"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def get(*lines, line=b"GET /a HTTP/1.1", host=HOST):
    return line + b"\r\n" + host + b"".join(row + b"\r\n" for row in lines) + b"Connection: close\r\n\r\n"


def post(rest):
    return b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + rest


RAW = {
    "a plain request": (get(), 200),
    "an old version without Host": (get(line=b"GET /a HTTP/1.0", host=b""), 200),
    "an address and a port": (get(host=b"Host: 127.0.0.1:8000\r\n"), 200),
    "an IPv6 address": (get(host=b"Host: [::1]:8000\r\n"), 200),
    "no Host": (get(host=b""), 400),
    "two Hosts": (get(host=HOST + HOST), 400),
    "an empty Host": (get(host=b"Host:\r\n"), 400),
    "a Host with a path": (get(host=b"Host: a/admin?x=\r\n"), 400),
    "a Host with a user": (get(host=b"Host: a@b\r\n"), 400),
    "a Host list": (get(host=b"Host: a,b\r\n"), 400),
    "sized body": (post(BODY), 200),
    "chunked body": (post(CHUNKED + b"4\r\nabcd\r\n0\r\n\r\n"), 200),
    "both lengths": (post(b"Content-Length: 4\r\n" + CHUNKED + b"4\r\nabcd\r\n0\r\n\r\n"), 400),
    "both lengths, the other way": (post(b"Transfer-Encoding: chunked\r\n" + BODY), 400),
    "two equal lengths": (post(b"Content-Length: 4\r\n" + BODY), 400),
    "a list of lengths": (post(b"Content-Length: 4, 4\r\n\r\nabcd"), 400),
    "a signed length": (post(b"Content-Length: +4\r\n\r\nabcd"), 400),
    "a negative length": (post(b"Content-Length: -4\r\n\r\nabcd"), 400),
    "a hexadecimal length": (post(b"Content-Length: 0x4\r\n\r\nabcd"), 400),
    "an empty length": (post(b"Content-Length:\r\n\r\nabcd"), 400),
    "a length of 5,000 digits": (post(b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"), 413),
    "another coding": (post(b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400),
    "an unknown coding": (post(b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400),
    "two codings": (post(b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"0\r\n\r\n"), 400),
    "a coding in HTTP/1.0": (get(b"Transfer-Encoding: chunked", line=b"POST /a HTTP/1.0"), 400),
    "a chunk longer than it says": (post(CHUNKED + b"2\r\nabcd\r\n0\r\n\r\n"), 400),
    "a chunk's size in words": (post(CHUNKED + b"four\r\nabcd\r\n0\r\n\r\n"), 400),
    "a signed chunk size": (post(CHUNKED + b"+4\r\nabcd\r\n0\r\n\r\n"), 400),
    "a chunk size with an underscore": (post(CHUNKED + b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n"), 400),
    "a chunk's extension": (post(CHUNKED + b"4;a=b\r\nabcd\r\n0\r\n\r\n"), 400),
    "a huge chunk size": (post(CHUNKED + b"f" * 17 + b"\r\n"), 400),
    "chunks with bare line feeds": (post(CHUNKED + b"4\nabcd\n0\n\n" + b" " * 16), 400),
    "trailers": (post(CHUNKED + b"4\r\nabcd\r\n0\r\nHost: b\r\n\r\n"), 400),
    "bare line feeds": (b"GET /a HTTP/1.1\nHost: a\n\n", 400),
    "a folded line": (get(b"X-A: a", b" folded"), 400),
    "a space before the colon": (get(b"X-A : a"), 400),
    "a header without a colon": (get(b"planted"), 400),
    "a header without a name": (get(b": a"), 400),
    "a NUL in a header": (get(b"X-A: a\0b"), 400),
    "a carriage return in a header": (get(b"X-A: a\rb"), 400),
    "a value beyond ASCII": (get(b"X-A: caf\xe9"), 200),
    "64 headers": (get(*[b"X-%d: a" % index for index in range(62)]), 200),
    "65 headers": (get(*[b"X-%d: a" % index for index in range(63)]), 431),
    "10,000 headers": (get(*[b"X: a"] * 10_000), 431),
    "a header of 128 KiB": (get(b"X-A: " + b"a" * 2**17), 431),
    "a head of 16 KiB": (get(b"X-A: " + b"a" * (2**14 - len(get(b"X-A: ")))), 200),
    "a head of 16 KiB and a byte": (get(b"X-A: " + b"a" * (2**14 - len(get(b"X-A: ")) + 1)), 431),
    "a path of 4 KiB": (get(line=b"GET /" + b"a" * 4500 + b" HTTP/1.1"), 431),
    "no path": (get(line=b"GET a HTTP/1.1"), 400),
    "a whole URL": (get(line=b"GET http://robot.local/a HTTP/1.1"), 400),
    "a star": (get(line=b"OPTIONS * HTTP/1.1"), 400),
    "a fragment": (get(line=b"GET /a#b HTTP/1.1"), 400),
    "a space in the path": (get(line=b"GET /a b HTTP/1.1"), 400),
    "two slashes": (get(line=b"GET //b/c HTTP/1.1"), 200),
    "a bad escape": (get(line=b"GET /%zz%ff HTTP/1.1"), 200),
    "bytes beyond ASCII in the path": (get(line=b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "no version": (get(line=b"GET /a"), 400),
    "another version": (get(line=b"GET /a HTTP/2.0"), 400),
    "a tab in the request line": (get(line=b"GET\t/a HTTP/1.1"), 400),
    "CONNECT": (get(line=b"CONNECT a:443 HTTP/1.1"), 400),
    "an unknown method": (get(line=b"HACK /a HTTP/1.1"), 400),
    "a small method": (get(line=b"get /a HTTP/1.1"), 400),
    "an empty line first": (b"\r\n" + get(), 400),
    "the other protocol's beginning": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "an unknown expectation": (get(b"Expect: 200-ok"), 400),
    "an upgrade to what is not known": (
        b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n" + BODY,
        200,
    ),
    "a websocket by POST": (
        b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n" + BODY,
        200,
    ),
}


async def test_raw_bytes_have_one_meaning(serve, status_of):
    async with serve() as door:
        replies = {name: await door.send(data) for name, (data, _) in RAW.items()}
    assert {name: status_of(reply) for name, reply in replies.items()} == {
        name: said for name, (_, said) in RAW.items()
    }
    assert max(map(len, replies.values())) < 4096
    refused = [reply for name, reply in replies.items() if RAW[name][1] != 200]
    assert all(b"problem+json" in reply and b"planted" not in reply for reply in refused)


async def test_bodies_are_as_long_as_they_say(serve):
    async with serve() as door:
        for name in ("sized body", "chunked body", "an upgrade to what is not known", "a websocket by POST"):
            assert b'"length": 4' in await door.send(RAW[name][0])


async def test_the_table_tells_a_parser_without_a_guard(serve, status_of, monkeypatch, parser):
    plain = {"h11": H11Protocol, "httptools": HttpToolsProtocol}[parser]
    monkeypatch.setitem(PROTOCOLS, parser, type("Plain", (plain,), {}))
    async with serve() as door:
        names = ["both lengths", "10,000 headers", "a whole URL", "trailers"]
        verdicts = [status_of(await door.send(RAW[name][0])) for name in names]
    assert verdicts != [RAW[name][1] for name in names]


@pytest.mark.parametrize("piece_bytes", [1, 7])
async def test_bytes_mean_the_same_one_at_a_time(serve, status_of, piece_bytes):
    names = ["chunked body", "sized body", "trailers", "both lengths", "a chunk longer than it says"]
    async with serve() as door:
        for name in names:
            data, expected = RAW[name]
            reader, writer = await door.connect()
            for start in range(0, len(data), piece_bytes):
                writer.write(data[start : start + piece_bytes])
                await asyncio.sleep(0)
            assert status_of(await reader.read()) == expected
            writer.close()


async def test_requests_sent_at_once_are_answered_in_order(serve):
    requests = [b"POST /%d HTTP/1.1\r\n%b" % (index, HOST) + BODY for index in range(20)]
    async with serve() as door:
        reply = await door.send(b"".join(requests) + get(line=b"GET /last HTTP/1.1"))
    paths = [json.loads(part.partition(b"}")[0] + b"}")["path"] for part in reply.split(b"\r\n\r\n")[1:]]
    assert paths == [f"/{index}" for index in range(20)] + ["/last"]


async def test_what_follows_the_last_request_is_not_read(serve):
    async with serve() as door:
        assert (await door.send(get() + get())).count(b"HTTP/1.1 200") == 1


async def test_a_body_that_nobody_reads_is_no_request(serve):
    smuggled = get(line=b"GET /smuggled HTTP/1.1")
    sized = b"POST /early HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, len(smuggled))
    async with serve() as door:
        reply = await door.send(sized + smuggled + get(line=b"GET /next HTTP/1.1"))
    assert b"smuggled" not in reply
    assert b"/next" in reply


async def test_many_small_chunks_are_cut_off(serve, status_of):
    async with serve() as door:
        before_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = await door.send(post(CHUNKED) + b"1\r\na\r\n" * 2**20)
        assert status_of(reply) == 413
        assert time.process_time() - before_s < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 2**10
        assert [refusal.code for refusal in door.app.seen] == ["payload_too_large"]
        assert status_of(await door.send(post(CHUNKED) + b"1\r\na\r\n" * 60_000 + b"0\r\n\r\n")) == 200


async def test_a_client_far_ahead_of_its_answers_loses_the_connection(serve, until):
    async with serve() as door:
        reader, writer = await door.connect()
        writer.write(get(line=b"GET /wait HTTP/1.1").replace(b"Connection: close\r\n", b"") * 10_000)
        await door.app.asked.wait()
        (connection,) = door.server.server_state.connections
        await until(lambda: not connection.cycle.keep_alive)
        door.app.go_on.set()
        assert (await reader.read()).count(b"HTTP/1.1 200") == 1
        writer.close()


async def test_both_parsers_answer_mutated_requests_and_go_on(serve, status_of):
    random_bytes = random.Random(7)
    seeds = [data for data, _ in RAW.values() if len(data) < 2000]
    async with serve(DoorLimits(header_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=0.2)) as door:
        verdicts = [status_of(await door.send(mutate(random_bytes, seeds))) for _ in range(150)]
        assert set(verdicts) <= {0, 200, 400, 408, 413, 431}
        assert verdicts.count(200) > 5
        assert status_of(await door.send(get())) == 200


def mutate(random_bytes, seeds):
    data = bytearray(random_bytes.choice(seeds))
    for _ in range(random_bytes.randint(1, 4)):
        at = random_bytes.randrange(len(data))
        what = random_bytes.randrange(4)
        if what == 0:
            data[at] = random_bytes.randrange(256)
        elif what == 1:
            del data[at : at + random_bytes.randrange(1, 9)]
        elif what == 2:
            data[at:at] = random_bytes.choice([b"\r\n", b"\0", b" ", b"Host: b\r\n", b"\xff"])
        else:
            data[at:at] = data[at : at + 20]
        data = data or bytearray(b"G")
    return bytes(data) + b"\r\n\r\n"
