"""Wrong values in sound bodies: arrays that lie, numbers that are none, requests that look right, JSON's tricks."""

import asyncio
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence

import hypothesis
import msgpack
import numpy as np
from harness.actions import place_of
from harness.questions import CONTRACT
from harness.scenario import Stage
from hypothesis import strategies as st
from wire import corpus, sockets
from wire.giants import Cost
from wire.sockets import Reply, exchange
from wire.verdicts import judge

from foreframe_server.codec.arrays import map_for_msgpack

_PATH, _INFER = "/v1/predictions", "/v2/models/world_model/infer"
_AT_ONCE = 16
_REFUSALS = (400, 409, 413, 415, 422)


async def _exchange_all(stage: Stage, requests: Sequence[bytes]) -> list[Reply]:
    _, port = place_of(stage)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(data: bytes) -> Reply:
        async with turns:
            return await exchange(port, data)

    return await asyncio.gather(*map(ask, requests))


def _post(body: bytes, *headers: tuple[str, str], path: str = _PATH) -> bytes:
    return corpus.request_bytes("POST", path, headers, body)


# Arrays that lie.

_EXACT = (CONTRACT.context_frames, 8, 8, 3)
_NUM_BYTES = math.prod(_EXACT)
_DTYPES = (
    "|u1",
    "uint8",
    "|u1",
    "|i1",
    "<f4",
    "<f8",
    "<i8",
    "<u2",
    "|O",
    "|S1",
    "|V1",
    "<M8[ns]",
    "u1,u1",
    "float16",
    "",
)
_SHAPES = (
    _EXACT, _EXACT, _EXACT, (8, 2, 8, 3), (8, 8, 2, 3), (3, 8, 8, 2), (2, 8, 24), (384,), (1, *_EXACT), (2, 8, 8, 3, 1),
    (2, 8, 8, 4), (3, 8, 8, 3), (1, 8, 8, 3), (2, 64, 3), (2**31 - 1, 8, 8, 3), (2**32, 2**32), (2**62, 4), (0, 8, 8,
    3),
    (-2, 8, 8, -3), (2.0, 8, 8, 3), (True, 8, 8, 3), (10**10,), (), (1,) * 7, (1,) * 300, ("2", 8, 8, 3), (2**64, 8,
    8, 3),
)  # fmt: skip
_LENGTHS = (
    _NUM_BYTES,
    _NUM_BYTES,
    _NUM_BYTES,
    _NUM_BYTES - 1,
    _NUM_BYTES + 1,
    0,
    8,
    2 * _NUM_BYTES,
    4 * _NUM_BYTES,
    4096,
)


def triples(rng: random.Random, count: int) -> list[tuple[str, tuple, int]]:
    """Draw so many of dtype, shape and length; the first is the right one."""
    right = [("|u1", _EXACT, _NUM_BYTES)]
    return right + [(rng.choice(_DTYPES), rng.choice(_SHAPES), rng.choice(_LENGTHS)) for _ in range(count - 1)]


def is_exact(triple: tuple[str, tuple, int]) -> bool:
    dtype, shape, length = triple
    is_whole = all(type(size) is int for size in shape)
    return dtype in ("|u1", "uint8") and is_whole and shape == _EXACT and length == _NUM_BYTES


async def send_lying_arrays(stage: Stage, *, count: int) -> None:
    """Send arrays of frames whose dtype, shape and bytes are drawn each by itself; only those that agree may pass."""
    drawn = triples(stage.rng, count)
    writers = itertools.cycle((_packed_array, _array_in_parts, _tensor))
    requests = [write(*triple) for write, triple in zip(writers, drawn, strict=False)]
    await _exchange_all(stage, requests[:200])
    cost = Cost(stage.server.tree())
    replies = await _exchange_all(stage, requests)
    passed = [reply.status == 200 for reply in replies]
    stage.facts |= {
        "triples": float(count),
        "exact": float(sum(map(is_exact, drawn))),
        "lies_believed": float(sum(ok and not is_exact(each) for ok, each in zip(passed, drawn, strict=True))),
        "exact_refused": float(sum(is_exact(each) and not ok for ok, each in zip(passed, drawn, strict=True))),
        "faulty": float(sum(judge(reply) is not None for reply in replies)),
        "peak_added_mb": cost.peak_added_mb,
    }


def _packed_array(dtype: str, shape: tuple, length: int) -> bytes:
    lie = {"__ndarray__": True, "data": bytes(length), "dtype": dtype, "shape": list(shape)}
    document = corpus.prediction(observation=corpus.observation(2, frames=lie))
    try:
        body = msgpack.packb(document, default=map_for_msgpack)
    except (OverflowError, TypeError):  # a size that msgpack cannot say
        return _array_in_parts(dtype, shape, length)
    return _post(body, corpus.MSGPACK)


def _array_in_parts(dtype: str, shape: tuple, length: int) -> bytes:
    frames = {"$part": "a", "dtype": dtype, "shape": list(shape)}
    document = corpus.plain(corpus.prediction(observation=corpus.observation(2, frames=frames)))
    return _post(*_written(corpus.form_writer({"a": bytes(length)}), document))


def _tensor(dtype: str, shape: tuple, length: int) -> bytes:
    datatypes = {
        "|u1": "UINT8",
        "uint8": "UINT8",
        "|i1": "INT8",
        "<f4": "FP32",
        "<f8": "FP64",
        "<i8": "INT64",
        "|O": "BYTES",
    }
    arrays = corpus.tensors()
    document = corpus.inference(arrays, is_binary=True)
    document["inputs"][0] |= {
        "datatype": datatypes.get(dtype, dtype), "shape": [1, *shape], "parameters": {"binary_data_size": length}
    }  # fmt: skip
    arrays["past_frames"] = np.zeros(length, np.uint8)
    return _post(*_written(corpus.tensor_writer(list(arrays.values())), document), path=_INFER)


def _written(write, document) -> tuple[object, ...]:
    body, headers = write(document)
    return body, *headers


# Numbers that are none.

_SPECIALS = (math.nan, math.inf, -math.inf, 1e39, -1e39)
_WORDS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"nan"', '"Infinity"', "true", "null")


async def send_specials(stage: Stage, *, count: int) -> None:
    """Put what is no finite number in each place of a state by each way in; count what reached the engine."""
    idle = _engine_work(stage)
    await _exchange_all(stage, [_post(*_written(corpus.write_msgpack, corpus.prediction()))])
    before = _engine_work(stage)
    requests = list(itertools.islice(special_requests(), count))
    replies = await _exchange_all(stage, [data for data in requests if isinstance(data, bytes)])
    talks = [_talk(stage, data) for data in requests if isinstance(data, dict)]
    said = await asyncio.gather(*talks)
    refused = sum(reply.status == 422 for reply in replies) + sum(b"non_finite" in reply.body for reply in said)
    stage.facts |= {
        "vectors": float(len(requests)),
        "not_refused": float(len(requests) - refused),
        "reached_engine": _engine_work(stage) - before,
        "good_reached_engine": before - idle,
        "faulty": float(sum(judge(reply) is not None for reply in replies)),
    }


def _engine_work(stage: Stage) -> float:
    stages = ("encode", "condition", "denoise", "latent_decode")
    return sum(stage.server.total("foreframe_stage_seconds_count", f'stage="{name}"') for name in stages)


async def _talk(stage: Stage, message: dict) -> Reply:
    _, port = place_of(stage)
    packed = msgpack.packb(message, default=map_for_msgpack)
    upgrade = corpus.request_bytes("GET", "/v1/realtime", sockets.UPGRADE, b"")
    return await exchange(port, upgrade, (sockets.frame(sockets.BINARY, packed),))


def special_requests() -> Iterator[bytes | dict]:
    """Make requests without an end: bytes for HTTP, a message for the websocket."""
    places = [(row, column) for row in range(CONTRACT.horizon) for column in range(len(CONTRACT.state.names))]
    for round_number in itertools.count():
        row, column = places[round_number % len(places)]
        special = _SPECIALS[round_number % len(_SPECIALS)]
        future, past = corpus.rows(CONTRACT.horizon).astype("<f8"), corpus.rows(CONTRACT.context_frames).astype("<f8")
        future[row, column] = past[row % CONTRACT.context_frames, column] = special
        held = corpus.observation()
        yield _in_words(row, column, _WORDS[round_number % len(_WORDS)])
        yield _packed({**corpus.prediction(), "future": {"values": future}})
        yield _packed({**corpus.prediction(), "future": {"values": future.tolist()}})
        yield _packed(corpus.prediction(observation={**held, "state": {"values": past}}))
        yield _packed({"observation": {**held, "state": {"values": past}}}, "/v1/observations")
        yield _packed({**corpus.scoring(), "candidates": {"values": np.stack([future, future])}}, "/v1/scores")
        yield _as_tensor(np.clip(special, -np.inf, np.inf), row, column)
        yield {"type": "predict", **corpus.prediction(), "future": {"values": future}}


def _packed(document: dict, path: str = _PATH) -> bytes:
    return _post(
        *_written(lambda each: (msgpack.packb(each, default=map_for_msgpack), (corpus.MSGPACK,)), document), path=path
    )


def _in_words(row: int, column: int, word: str) -> bytes:
    document = corpus.plain(corpus.prediction())
    document["future"]["values"][row][column] = "here"
    return _post(json.dumps(document).replace('"here"', word).encode(), corpus.JSON)


def _as_tensor(special: float, row: int, column: int) -> bytes:
    arrays = corpus.tensors()
    finite = special if abs(special) == math.inf or math.isnan(special) else math.nan
    arrays["future_states"][0, row, column] = finite
    document = corpus.inference(arrays, is_binary=True)
    return _post(*_written(corpus.tensor_writer(list(arrays.values())), document), path=_INFER)


# Requests that look right.

_WRONG_FIELDS: dict[str, st.SearchStrategy] = {
    "observation": st.sampled_from([
        corpus.observation(1), corpus.observation(3), {"cameras": {}, "state": {"values": corpus.rows(2)}},
        {"cameras": {"wrist": {"frames": corpus.frames(2)}}, "state": {"values": corpus.rows(2)}},
        corpus.observation(2, frames=np.zeros((2, 1, 1, 3), np.uint8)),
        corpus.observation(2, frames=np.zeros((2, 8, 8, 1), np.uint8)),
        {**corpus.observation(), "state": {"values": corpus.rows(1)}},
        {**corpus.observation(), "state": {"values": corpus.rows(2), "schema": "so101-6"}},
        {**corpus.observation(), "state": {"values": corpus.rows(2), "units": ["mm"] * 4}},
        {**corpus.observation(), "state": {"values": corpus.rows(2), "names": ["joint_0"] * 4}},
    ]),
    "future": st.builds(
        lambda shape: {"values": np.zeros(shape, np.float32)},
        st.tuples(st.integers(0, 9), st.integers(1,
        9)).filter(lambda shape: not (1 <= shape[0] <= 4 and shape[1] == 4)),
    ),
    "frames": st.one_of(st.lists(st.integers(5, 2**31), min_size=1, max_size=4), st.just([0]), st.just([1, 1]),
    st.just([])),
    "ensemble": st.one_of(
        st.builds(lambda size: {"size": size}, st.integers(33, 2**40) | st.integers(-5, 0)),
        st.sampled_from([{"size": 3, "reducer": "mode"}, {"size": 2, "tolerance": 2.0}, {"noise": "pink"},
        {"size": 1.0}]),
    ),
    "sampling": st.one_of(
        st.builds(lambda steps: {"steps": steps}, st.integers(51, 2**40) | st.integers(-5, 0)),
        st.sampled_from([{"seed": -1}, {"seed": 2**53}, {"strategy": "posterior_mean", "steps": 2}, {"guidance": 2.0}]),
    ),
    "deadline_ms": st.integers(-10, 4) | st.integers(600_001, 2**40),
    "model": st.text(min_size=1, max_size=20).filter(lambda name: name != CONTRACT.model),
    "observation_id": st.text(max_size=200),
    "stream_id": st.text(min_size=300, max_size=400),
    "cache": st.text(max_size=8).filter(lambda choice: choice not in ("use", "bypass", "refresh")),
    "return": st.sampled_from([{"encoding": "gif"}, {"variance": "all"}, {"latents": True}, {"members": 1}, {"a": 1}]),
    "metadata": st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 2**60)), min_size=1, max_size=3),
    "priority": st.sampled_from(["urgent", "", 0, True]),
    "salt": st.text(max_size=5),
}  # fmt: skip


@st.composite
def wrong_documents(draw: st.DrawFn) -> dict[str, object]:
    """Draw a request that is right but for one to three fields."""
    names = draw(st.lists(st.sampled_from(sorted(_WRONG_FIELDS)), min_size=1, max_size=3, unique=True))
    return corpus.prediction(**{name: draw(_WRONG_FIELDS[name]) for name in names})


def draw_wrong(count: int, seed: int) -> list[dict[str, object]]:
    """Draw so many, the same ones for a seed."""
    drawn: list[dict[str, object]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(wrong_documents())
    def collect(document: dict[str, object]) -> None:
        drawn.append(document)

    collect()
    return drawn


async def send_wrong_requests(stage: Stage, *, count: int) -> None:
    """Send requests that fit the wire's form and not the model; none may reach it, let alone harm its worker."""
    drawn = await asyncio.to_thread(draw_wrong, count, stage.rng.randrange(2**32))
    workers, before = stage.server.workers(), _engine_work(stage)
    replies = await _exchange_all(stage, [_packed(document) for document in drawn])
    log = stage.server.log.read_text(errors="replace")
    stage.facts |= {
        "drawn": float(len(drawn)),
        "not_refused": float(sum(reply.status not in (*_REFUSALS, 404, 410) for reply in replies)),
        "worker_exceptions": float(log.count("Traceback") + log.count("model_fault")),
        "worker_deaths": float(stage.server.workers() != workers),
        "reached_engine": _engine_work(stage) - before,
        "faulty": float(sum(judge(reply) is not None for reply in replies)),
    }


# JSON's tricks.

_DEEP = 200_000


def tricks() -> dict[str, tuple[bytes, int]]:
    """Make bodies, each with the status that it must have."""
    good = json.dumps(corpus.plain(corpus.prediction())).encode()
    with_ = lambda text: good[:-1] + b", " + text + b"}"  # noqa: E731 - a field at the end
    return {
        "as it should be": (good, 200),
        "white space around": (b" \r\n\t" + good + b"\n ", 200),
        "keys escaped": (good.replace(b'"future"', b'"\\u0066uture"'), 200),
        "a byte order mark": (b"\xef\xbb\xbf" + good, 422),
        "utf-16": (good.decode().encode("utf-16"), 422),
        "a comment": (b"/* a */" + good, 422),
        "a comma at the end": (good[:-1] + b",}", 422),
        "two documents": (good + good, 422),
        "something behind": (good + b"x", 422),
        "single quotes": (good.replace(b'"', b"'"), 422),
        "a key twice": (with_(b'"future": {"values": [[0, 0, 0, 0]]}'), 422),
        "a key twice, once escaped": (with_(b'"\\u0066uture": {"values": [[0, 0, 0, 0]]}'), 422),
        "a key twice inside": (with_(b'"ensemble": {"size": 1, "size": 32}'), 422),
        "a deep list": (b"[" * _DEEP + b"]" * _DEEP, 422),
        "a deep object": (b'{"a":' * _DEEP + b"1" + b"}" * _DEEP, 422),
        "nine deep": (with_(b'"metadata": {"a": [[[[[[[[1]]]]]]]]}'), 422),
        "4,000 digits": (with_(b'"deadline_ms": ' + b"9" * 4000), 422),
        "54 bits": (with_(b'"metadata": {"a": 18014398509481985}, "deadline_ms": 9007199254740993'), 422),
        "a seed beyond 53 bits": (good.replace(b'"seed": ', b'"seed": 9007199254740992'), 422),
        "minus nothing": (with_(b'"deadline_ms": -0'), 422),
        "an exponent": (with_(b'"deadline_ms": 1e3'), 422),
        "a number of two zeros": (with_(b'"deadline_ms": 007'), 422),
        "a plus": (with_(b'"deadline_ms": +700'), 422),
        "hexadecimal": (with_(b'"deadline_ms": 0x700'), 422),
        "true for one": (with_(b'"ensemble": {"size": true}'), 422),
        "a number in quotes": (with_(b'"deadline_ms": "700"'), 422),
        "a lone surrogate": (with_(b'"stream_id": "\\ud800"'), 422),
        "a lone surrogate as a key": (with_(b'"\\ud800": 1'), 422),
        "a control character": (with_(b'"stream_id": "a\x01b"'), 422),
        "bytes that are no text": (with_(b'"stream_id": "\xff"'), 422),
        "an overlong slash": (with_(b'"stream_id": "\xc0\xaf"'), 422),
        "a prototype": (with_(b'"__proto__": {"model": "a"}'), 422),
        "null for the whole": (b"null", 422),
        "a list of one": (b"[" + good + b"]", 422),
        "nothing": (b"", 422),
        "spaces": (b" " * 1000, 422),
    }


async def send_tricks(stage: Stage) -> None:
    """Send each and compare its status."""
    listed = tricks()
    replies = await _exchange_all(stage, [_post(body, corpus.JSON) for body, _ in listed.values()])
    statuses = [status for _, status in listed.values()]
    stage.facts |= {
        "bodies": float(len(listed)),
        "other_status": float(sum(reply.status != status for reply, status in zip(replies, statuses, strict=True))),
        "faulty": float(sum(judge(reply) is not None for reply in replies)),
    }
