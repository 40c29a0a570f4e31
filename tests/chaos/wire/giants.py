"""Bodies that are too large, or much larger than they look: what they cost, and how small the reply is."""

import asyncio
import contextlib
import json
import statistics
import sys
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgpack
import numpy as np
from harness.actions import place_of
from harness.scenario import Stage
from harness.servers import FOLDER, status
from wire import corpus, pictures
from wire.sockets import Reply, exchange
from wire.verdicts import judge

from foreframe_server.codec.documents import write_document
from foreframe_server.codec.media import Media

_MIB = 2**20
_TICKS = 100
_PATH = "/v1/predictions"


@contextlib.asynccontextmanager
async def probing(stage: Stage, fact: str) -> AsyncIterator[None]:
    """Have another process ask /healthz all the while; remember the slowest answer in ms."""
    _, port = place_of(stage)
    prober = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wire.prober", str(port), cwd=FOLDER,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        out, _ = await prober.communicate(b"")
    stage.worsen(fact, float(out))


class Cost:
    """What a server's processes use from here on: peak memory in MiB, processor seconds."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._peak, self._cpu_s = self._read_peak(), self._read_cpu_s()

    def _read_peak(self) -> float:
        return sum(status(pid, "VmHWM") for pid in self._pids) / 1024

    def _read_cpu_s(self) -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self._pids]
        return sum(int(each[11]) + int(each[12]) for each in fields) / _TICKS

    @property
    def peak_added_mb(self) -> float:
        return self._read_peak() - self._peak

    @property
    def cpu_s(self) -> float:
        return self._read_cpu_s() - self._cpu_s


async def _idle(stage: Stage) -> None:
    async with probing(stage, "health_idle_ms"):
        await asyncio.sleep(1.0)


def _tell(stage: Stage, replies: Sequence[Reply], statuses: Sequence[int]) -> None:
    """Put what refusals have in common into the facts. statuses: those that are one."""
    stage.facts |= {
        "sent": float(len(replies)),
        "not_refused": float(sum(reply.status not in statuses for reply in replies)),
        "faulty": float(sum(judge(reply) is not None for reply in replies)),
        "reply_bytes": float(max(len(reply.body) for reply in replies)),
    }


async def send_wrong_giants(stage: Stage, *, rounds: int) -> None:
    """Send the largest bodies that are read, full of wrong values, while another process asks for health."""
    _, port = place_of(stage)
    await _idle(stage)
    bodies = [request for _, request in wrong_giants()]
    async with probing(stage, "health_worst_ms"):
        replies = [await exchange(port, data, patience_s=60) for _ in range(rounds) for data in bodies]
    _tell(stage, replies, (400, 413, 415, 422))
    stage.facts["slowest_refusal_ms"] = 1000 * max(reply.seconds for reply in replies)
    stage.facts["health_added_ms"] = stage.facts["health_worst_ms"] - stage.facts["health_idle_ms"]


def wrong_giants() -> Iterator[tuple[str, bytes]]:
    """Make each body, and its name."""
    many, head = 65_000, {"encoding": "png"}
    packed = [[0.5] * 16_000 for _ in range(4)]
    yield "words for numbers", _json({**_plain(), "future": {"values": [["a"] * many]}})
    yield "rows of one", _json({**_plain(), "future": {"values": [[None]] * (many // 2)}})
    yield "more values than are read", _json({**_plain(), "future": {"values": [["a"] * 600_000]}})
    yield "one long word", _json({**_plain(), "model": "a" * (15 * _MIB)})
    yield (
        "a long number",
        _json({**_plain(), "deadline_ms": 0}).replace(b'"deadline_ms": 0', b'"deadline_ms": ' + b"9" * 10**6),
    )
    yield "escapes", _json({**_plain(), "model": "\u2028" * 60_000})
    yield "long pictures", _json(_seen({**head, "frames": ["A" * (7 * _MIB)] * 2}))
    yield "no pictures", _json(_seen({**head, "frames": ["!" * (7 * _MIB)] * 2}))
    yield "many pictures", _json(_seen({**head, "frames": ["AAAA"] * many}))
    yield "packed rows", _msgpack({**_plain(), "future": {"values": packed}})
    yield (
        "a packed array of another type",
        _msgpack({**_plain(), "future": {"values": np.zeros((2 * _MIB, 4), "<i4")[:900_000]}}),
    )
    yield "packed not-numbers", _msgpack({**_plain(), "future": {"values": np.full((900_000, 4), np.nan, "<f4")}})
    yield "a packed binary", _msgpack({**_plain(), "model": b"\xff" * (15 * _MIB)})
    yield "many keys", _json({f"key-{number}": number for number in range(many)})
    yield "brackets", corpus.request_bytes("POST", _PATH, (corpus.JSON,), b'{"a":' * 60_000)
    yield "packed brackets", corpus.request_bytes("POST", _PATH, (corpus.MSGPACK,), b"\x91" * (15 * _MIB))
    yield "too many bytes", corpus.request_bytes("POST", _PATH, (corpus.JSON,), b"[" + b" " * (17 * _MIB))
    yield "tensors in words", _tensors(["a"] * many)
    yield "tensors of another length", _tensors([0.5] * many)
    yield "many parts", _parts(600)


def _plain() -> dict[str, object]:
    return corpus.plain(corpus.prediction())


def _seen(clip: dict[str, object]) -> dict[str, object]:
    return {**_plain(), "observation": {"cameras": {"head": clip}, "state": {"values": [[0.0] * 4] * 2}}}


def _json(document: object) -> bytes:
    return corpus.request_bytes("POST", _PATH, (corpus.JSON,), json.dumps(document).encode())


def _msgpack(document: dict[str, object]) -> bytes:
    try:
        body = write_document(document, Media.MSGPACK)
    except ValueError:
        body = msgpack.packb(document)
    return corpus.request_bytes("POST", _PATH, (corpus.MSGPACK,), body)


def _tensors(data: list[object]) -> bytes:
    document = corpus.inference(corpus.tensors(), is_binary=False)
    document["inputs"][1]["data"] = data
    body = json.dumps(document).encode()
    return corpus.request_bytes("POST", "/v2/models/world_model/infer", (corpus.JSON,), body)


def _parts(count: int) -> bytes:
    body, headers = corpus.form_writer({f"part-{number}": b"a" * 1000 for number in range(count)})(_plain())
    return corpus.request_bytes("POST", _PATH, headers, body)


async def send_right_giants(stage: Stage, *, rounds: int) -> None:
    """Send the largest requests that are answered, while another process asks for health."""
    _, port = place_of(stage)
    await _idle(stage)
    bodies = list(right_giants())
    async with probing(stage, "health_worst_ms"):
        replies = [await exchange(port, data, patience_s=60) for _ in range(rounds) for data in bodies]
    stage.facts |= {
        "sent": float(len(replies)),
        "not_answered": float(sum(reply.status != 200 for reply in replies)),
        "largest_mb": max(map(len, bodies)) / _MIB,
        "health_added_ms": stage.facts["health_worst_ms"] - stage.facts["health_idle_ms"],
    }


def right_giants() -> Iterator[bytes]:
    """Make pictures to be padded, as arrays and as PNG, and a scoring of as many candidates as are taken."""
    noise = np.random.default_rng(1).integers(0, 256, (2, 1500, 1500, 3), dtype=np.uint8)
    clip = {"encoding": "raw_rgb8", "data": noise, "width": 1500, "height": 1500, "resize": "pad"}
    yield _msgpack(corpus.prediction(observation=corpus.observation(2, **clip)))
    squares = [pictures.in_base64(pictures.png(1800, 1800))] * 2
    yield _json({**_plain(), **_seen({"encoding": "png", "frames": squares, "resize": "pad"})})
    plans = np.stack([corpus.rows(4) for _ in range(64)])
    body = write_document({**corpus.scoring(), "candidates": {"values": plans}}, Media.MSGPACK)
    yield corpus.request_bytes("POST", "/v1/scores", (corpus.MSGPACK,), body)


async def send_chunk_flood(stage: Stage, *, megabytes: int) -> None:
    """Send a body of so many MiB in chunks of one byte."""
    _, port = place_of(stage)
    head = (
        f"POST {_PATH} HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    flood = head.encode() + b"1\r\na\r\n" * (megabytes * _MIB) + b"0\r\n\r\n"
    cost = Cost(stage.server.tree())
    reply = await exchange(port, flood, patience_s=60)
    _tell(stage, [reply], (400, 413))
    stage.facts |= {"cpu_s": cost.cpu_s, "peak_added_mb": cost.peak_added_mb, "refused_ms": 1000 * reply.seconds}


async def send_deflate_bombs(stage: Stage, *, megabytes: int) -> None:
    """Send so many MiB of zeros deflated, named in every way that a client may name it."""
    _, port = place_of(stage)
    bomb = pictures.zeros(megabytes * _MIB)
    gzipped = zlib.compressobj(9, zlib.DEFLATED, 31)
    small = gzipped.compress(bytes(_MIB)) + gzipped.flush()
    named = [
        ("deflate", bomb),
        ("gzip", small),
        ("br", bomb),
        ("gzip, deflate", bomb),
        ("zstd", bomb),
        ("DEFLATE", bomb),
    ]
    cost = Cost(stage.server.tree())
    replies = [
        await exchange(port, corpus.request_bytes("POST", _PATH, (corpus.JSON, ("content-encoding", name)), body))
        for name, body in named
    ]
    _tell(stage, replies, (413, 415))
    stage.facts |= {
        "bomb_mb": len(bomb) / _MIB, "peak_added_mb": cost.peak_added_mb,
        "refused_ms": 1000 * max(reply.seconds for reply in replies),
    }  # fmt: skip


async def send_pictures(stage: Stage, *, tries: int) -> None:
    """Send each crafted picture some times, the large ones to be padded too; the median of the tries counts."""
    _, port = place_of(stage)
    workers = stage.server.workers()
    requests = [
        _json(_seen({"encoding": encoding, "frames": [pictures.in_base64(data)] * 2, **terms}))
        for name, encoding, data in pictures.crafted()
        for terms in ({}, {"resize": "pad"}) if not terms or "squared" in name
    ]  # fmt: skip
    await exchange(port, _json(_plain()))
    cost = Cost(stage.server.tree())
    replies = [[await exchange(port, data) for _ in range(tries)] for data in requests]
    _tell(stage, [reply for each in replies for reply in each], (400, 413, 415, 422))
    stage.facts |= {
        "pictures": float(len(list(pictures.crafted()))), "peak_added_mb": cost.peak_added_mb,
        "refused_ms": 1000 * max(statistics.median(reply.seconds for reply in each) for each in replies),
        "worker_deaths": float(stage.server.workers() != workers),
    }  # fmt: skip
