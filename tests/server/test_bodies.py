"""Memory for bodies: used again once nothing looks at it, never while something does."""

import numpy as np
import pytest

from foreframe_server.bodies import Bodies

MIB = 2**20


def receive(bodies, data, *, said=None, piece_bytes=1000):
    body = bodies.open(said)
    for start in range(0, len(data), piece_bytes):
        body.add(data[start : start + piece_bytes])
    return body.close()


@pytest.mark.parametrize("said", [None, "5000", "7", "0", "99999999999999999999", "x", "-3"])
@pytest.mark.parametrize("count", [0, 1, 5000, 200_000])
def test_a_body_is_what_came_whatever_its_header_said(said, count):
    data = np.random.default_rng(count).bytes(count)

    body = receive(Bodies(), data, said=said)

    assert bytes(body) == data
    assert body.readonly


def test_memory_is_used_again_when_nothing_looks_at_it():
    bodies = Bodies()
    first = receive(bodies, b"a" * MIB, said=str(MIB))
    assert bodies.num_kept_bytes == 0

    del first

    assert bodies.num_kept_bytes == MIB
    second = receive(bodies, b"b" * MIB, said=str(MIB))
    assert bodies.num_kept_bytes == 0
    assert bytes(second) == b"b" * MIB


def test_memory_is_not_used_again_while_an_array_looks_at_it():
    bodies = Bodies()
    held = np.frombuffer(receive(bodies, b"a" * MIB, said=str(MIB)), np.uint8)[5:9]

    later = receive(bodies, b"b" * MIB, said=str(MIB))

    assert bytes(later) == b"b" * MIB
    assert held.tolist() == [97] * 4
    del held, later
    assert bodies.num_kept_bytes == 2 * MIB


def test_a_shorter_body_shows_nothing_of_the_one_before():
    bodies = Bodies()
    del_later = receive(bodies, b"secret" * 1000, said="6000")
    del del_later

    assert bytes(receive(bodies, b"x", said="6000")) == b"x"


def test_no_more_is_kept_than_the_bound():
    bodies = Bodies(max_kept_bytes=2 * MIB)
    held = [receive(bodies, b"a" * MIB, said=str(MIB)) for _ in range(5)]

    held.clear()

    assert bodies.num_kept_bytes == 2 * MIB
