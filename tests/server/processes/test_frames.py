import random
import string

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreframe_server.processes.frames import (
    MAX_HEADER_BYTES,
    PREAMBLE_BYTES,
    CorruptFrame,
    header_length,
    pack,
    unpack,
)
from foreframe_server.processes.messages import (
    ConditioningReply,
    DecodeCall,
    Failure,
    Frame,
    Known,
    Ping,
    ReadCall,
    ReadPart,
    Sent,
    SharedPart,
    StepCall,
    StepPart,
)

NUM_FUZZED = 100_000

FRAMES = [
    Frame(number=1, body=Ping()),
    Frame(number=2, forget=(3, 4), body=Ping()),
    Frame(
        number=3,
        arrays=(Sent(dtype="uint8", shape=(4, 8, 8, 3)), Known(number=9)),
        body=DecodeCall(latents=(0, 1), frame_indices=(1, 4)),
    ),
    Frame(
        number=4,
        arrays=(Sent(dtype="float32", shape=(12, 3, 4, 4), number=7),),
        body=StepCall(
            conditionings=(SharedPart(context_latents=0, tables={"drive": 0}),),
            rows=(StepPart(latents=0, time=1.0, next_time=0.5, conditioning=0, earlier_times=(1.0,), guidance=1.0),),
        ),
    ),
    Frame(number=5, body=ReadCall(rows=(ReadPart(ids=0, states=0, keys=(0,), values=(0,), target=None, top_k=5),))),
    Frame(number=6, body=ConditioningReply(context_latents=None, tables={"drive": 0})),
    Frame(number=7, body=Failure(error="ModelFault", message="the latents are not finite")),
]


def read(data):
    return unpack(data[PREAMBLE_BYTES : PREAMBLE_BYTES + header_length(data[:PREAMBLE_BYTES])])


def mutate(rng, data):
    """Flip, cut, insert, repeat or replace a few bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[place : place + rng.randint(1, 8)]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            case 3:
                data[place:place] = data[place : place + rng.randint(1, 32)]
            case _:
                # Lengths and types of msgpack, where a flip finds most.
                data[place : place + 1] = rng.choice([b"\xdd\xff\xff\xff\xff", b"\xc9", b"\xdf", b"\xc1", b"\xd6\xff"])
    return bytes(data)


def fuzz(decode, count):
    """Decode mutated frames, and return the errors that are not typed."""
    rng, surprises = random.Random(0), []
    for _ in range(count):
        try:
            decode(mutate(rng, pack(rng.choice(FRAMES)) if rng.random() < 0.02 else rng.choice(PACKED)))
        except CorruptFrame:
            continue
        except Exception as error:  # noqa: BLE001 - any kind at all
            surprises.append(error)
    return surprises


PACKED = [pack(frame) for frame in FRAMES]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.body.kind)
def test_a_frame_comes_back_as_it_was(frame):
    assert read(pack(frame)) == frame


def test_mutated_frames_are_refused_with_the_typed_error_or_are_frames():
    assert fuzz(read, NUM_FUZZED) == []


def test_the_fuzz_finds_a_decoder_that_lets_errors_of_other_kinds_through():
    assert fuzz(lambda data: Frame(**msgpack.unpackb(data[PREAMBLE_BYTES:], use_list=False)), 200)


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_with_the_typed_error_or_are_a_frame(data):
    try:
        unpack(data)
    except CorruptFrame:
        return


@pytest.mark.parametrize(
    "preamble",
    [b"", b"FFP", b"FFP1\x00", b"FFP2\x01\x00\x00\x00", b"FFP1" + (MAX_HEADER_BYTES + 1).to_bytes(4, "little")],
)
def test_a_bad_preamble_is_refused(preamble):
    with pytest.raises(CorruptFrame):
        header_length(preamble)


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1},
        {"number": 1.0},
        {"number": True},
        {"extra": 1},
        {"forget": (-1,)},
        {"arrays": ({"place": "sent", "dtype": "object", "shape": (1,)},)},
        {"arrays": ({"place": "sent", "dtype": "float32", "shape": (-1,)},)},
        {"arrays": ({"place": "sent", "dtype": "float32", "shape": (2**50,)},)},
        {"arrays": ({"place": "sent", "dtype": "float32", "shape": (1,) * 9},)},
        {"body": {"kind": "unknown"}},
        {"body": {"kind": "denoise", "previous": 0, "state": 0, "time": float("nan"), "next_time": 0.0}},
        {"body": {"kind": "encode", "context": -1}},
    ],
    ids=str,
)
def test_a_field_that_breaks_the_schema_is_refused(change):
    document = Frame(number=1, body=Ping()).model_dump() | change
    with pytest.raises(CorruptFrame):
        unpack(msgpack.packb(document))


def test_a_refusal_names_the_field_and_never_what_it_held():
    secret = "".join(random.Random(0).choices(string.ascii_letters, k=20))
    document = Frame(number=1, body=Ping()).model_dump() | {"number": secret, secret: 1}
    with pytest.raises(CorruptFrame, match="number") as refused:
        unpack(msgpack.packb(document))
    assert secret not in str(refused.value)


def test_a_header_beyond_the_limit_is_not_written():
    with pytest.raises(CorruptFrame, match="at most"):
        pack(Frame(number=1, body=Failure(error="ModelFault", message="x" * MAX_HEADER_BYTES)))
