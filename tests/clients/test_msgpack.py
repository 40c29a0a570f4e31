"""The small MessagePack against the specification, against `msgpack` where it is installed, and against damage."""

from __future__ import annotations

import random
import struct

import pytest

from foreframe_client._msgpack import MAX_DEPTH, decode, encode

BORDERS = [0, 1, 31, 32, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1]
BORDERS += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]
LENGTHS = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]


def random_value(rng: random.Random, depth: int = 0) -> object:
    kinds = ["nil", "bool", "int", "float", "str", "bin"] + ([] if depth > 4 else ["list", "map"])
    kind = rng.choice(kinds)
    if kind == "int":
        return rng.choice(BORDERS) if rng.random() < 0.5 else rng.randint(-(2**40), 2**40)
    if kind == "list":
        return [random_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 3, 17]))]
    if kind == "map":
        return {random_key(rng): random_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 3, 17]))}
    made = {"nil": None, "bool": rng.random() < 0.5, "float": rng.gauss(0, 1e9)}
    return made[kind] if kind in made else random_key(rng, kind)


def random_key(rng: random.Random, kind: str = "str") -> object:
    length = rng.choice([0, 3, 31, 32, 300])
    if kind == "bin":
        return bytes(rng.randint(0, 255) for _ in range(length))
    return "".join(rng.choice("aé世𝄞\x00") for _ in range(length))


def plain(value: object) -> object:
    """Views as bytes, so that trees can be compared."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"\xc0"),
        (False, b"\xc2"),
        (True, b"\xc3"),
        (7, b"\x07"),
        (-1, b"\xff"),
        (200, b"\xcc\xc8"),
        (-200, b"\xd1\xff\x38"),
        (1.5, b"\xcb\x3f\xf8" + bytes(6)),
        ("hé", b"\xa3h\xc3\xa9"),
        (b"\x00", b"\xc4\x01\x00"),
        ([1, "a"], b"\x92\x01\xa1a"),
        ({"a": None}, b"\x81\xa1a\xc0"),
    ],
)
def test_values_have_the_specifications_bytes(value, expected):
    assert encode(value) == expected
    assert plain(decode(expected)) == value


@pytest.mark.parametrize("value", BORDERS)
def test_integers_survive_at_every_border(value):
    assert decode(encode(value)) == value


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_survive_at_every_border(length):
    for value in ("x" * length, b"x" * length, [None] * length, {str(key): True for key in range(length)}):
        assert plain(decode(encode(value))) == value


def test_random_trees_survive():
    rng = random.Random(1)
    for _ in range(300):
        value = random_value(rng)
        assert plain(decode(encode(value))) == value


def test_random_trees_have_the_same_bytes_as_msgpack_writes():
    msgpack = pytest.importorskip("msgpack")
    rng = random.Random(2)
    for _ in range(300):
        value = random_value(rng)
        assert encode(value) == msgpack.packb(value)
        assert plain(decode(msgpack.packb(value, use_single_float=True))) == msgpack.unpackb(
            msgpack.packb(value, use_single_float=True), strict_map_key=False
        )


def test_damaged_bytes_are_refused_wherever_msgpack_refuses_them():
    """Anything the real library refuses is refused; what both take is the same value."""
    msgpack = pytest.importorskip("msgpack")
    rng = random.Random(3)
    refused = 0
    for _ in range(2000):
        data = bytearray(encode(random_value(rng, depth=3)))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randint(0, 255)
        try:
            value = decode(data)
        except ValueError:
            refused += 1
            continue
        theirs = msgpack.unpackb(bytes(data), strict_map_key=False)
        assert repr(plain(value)) == repr(theirs)
    assert 100 < refused < 2000


def test_every_cut_is_refused():
    data = encode({"a": [1, 2.5, "text", b"bytes", 2**40, -(2**20)], "b": {"c": "x" * 40}})
    for end in range(len(data)):
        with pytest.raises(ValueError, match="cut short"):
            decode(data[:end])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x01\x02", "follow"),
        (b"\xc1", "not part of the wire"),
        (b"\xd4\x01\x00", "not part of the wire"),
        (b"\xc7\x01\x01\x00", "not part of the wire"),
        (b"\xa1\xff", "utf-8"),
        (b"\x81\x01\x02", "key"),
        (b"\x82\xa1a\x01\xa1a\x02", "repeated"),
        (b"\x81\x90\x01", "key"),
        (b"\xdd\xff\xff\xff\xff", "cut short"),
        (b"\xdb\xff\xff\xff\xffx", "cut short"),
        (b"\x91" * 200 + b"\xc0", "deeper"),
    ],
)
def test_what_is_not_part_of_the_wire_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode(data)


@pytest.mark.parametrize("value", [object(), {1: 2}, {None: 1}, {1.5}, 1j])
def test_other_types_are_not_sent(value):
    with pytest.raises(TypeError):
        encode(value)


def test_too_large_integers_and_too_deep_trees_are_not_sent():
    nested: object = None
    for _ in range(MAX_DEPTH + 1):
        nested = [nested]
    for value in (2**64, -(2**63) - 1, nested):
        with pytest.raises(ValueError, match=r"beyond|deeper"):
            encode(value)


def test_bytes_are_read_without_a_copy():
    data = encode(b"x" * 1000)
    view = decode(data)
    assert isinstance(view, memoryview)
    assert view.obj is data


def test_single_precision_is_read():
    assert decode(b"\xca" + struct.pack(">f", 0.5)) == 0.5
