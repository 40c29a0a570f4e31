"""Connections that never pause notice what is no right answer, and when they are too slow to measure."""

import socket
import threading

import pytest
from peers.errors import Invalid
from peers.hammer import Refused, Tally, read_reply, require_pieces, require_spare_time
from peers.hosting import stub
from peers.stub_wires import stub_question


@pytest.fixture
def reply():
    """Send bytes in two pieces and read them as one reply."""
    pairs = [socket.socketpair() for _ in range(1)]

    def read(sent):
        here, there = pairs[0]
        half = len(sent) // 2
        threading.Thread(target=lambda: (there.sendall(sent[:half]), there.sendall(sent[half:]), there.close())).start()
        return bytes(read_reply(here, memoryview(bytearray(1000))))

    yield read
    for each in pairs[0]:
        each.close()


def test_a_reply_that_comes_in_pieces_is_read_whole(reply):
    assert reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nserver: x\r\n\r\nhello") == b"hello"


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncon",
    ],
)
def test_anything_but_a_whole_answer_is_refused(reply, sent):
    with pytest.raises(Refused):
        reply(sent)


def test_a_wrong_answer_is_noticed():
    frames, others = (stub_question("mosec", "", "/", content) for content in range(2))
    require_pieces(frames.pieces[0], frames.pieces)
    with pytest.raises(Invalid, match="differs"):
        require_pieces(others.pieces[0], frames.pieces)


def test_every_form_of_the_stub_holds_the_frames_and_wants_the_same_answer():
    raw, msgpack = stub_question("mosec", "", "/", 3), stub_question("foreframe", "MessagePack", "", 3)
    tensors = stub_question("foreframe", "KServe v2 binary", "", 3)
    frames = raw.request[-stub.BODY_BYTES :]
    assert frames in msgpack.request
    assert frames in tensors.request
    assert b"".join(msgpack.pieces) == raw.pieces[0] == tensors.pieces[0]
    assert len(raw.pieces[0]) == stub.REPLY_BYTES


def test_askers_without_time_to_spare_measure_themselves():
    assert require_spare_time([Tally([1.0], 10.0, 2.0)]) == 0.2
    with pytest.raises(Invalid, match="askers were busy"):
        require_spare_time([Tally([1.0], 10.0, 2.0), Tally([1.0], 10.0, 9.9)])
