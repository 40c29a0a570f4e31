import gc
import os
import socket
import struct

import numpy as np
import pytest

from foreframe_engines import ModelFault
from foreframe_server.processes.channel import Channel, ChannelClosed, Link, at
from foreframe_server.processes.frames import MAGIC, CorruptFrame, pack
from foreframe_server.processes.messages import Arrays, Frame, Ping, Sent
from foreframe_server.processes.parcels import Parcel
from foreframe_server.processes.shared_memory import SharedMemory


@pytest.fixture
def links():
    """Both ends of a link, which share their memory."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    there, back = SharedMemory.create(), SharedMemory.create()
    yield Link(ours, there, back), Link(theirs, back, there)
    for closed in (ours, theirs, there, back):
        closed.close()


@pytest.fixture
def channels(links):
    return Channel(links[0]), Channel(links[1])


def send(channel, arrays=(), kept=(), number=1):
    parcel = Parcel(channel.sent)
    indices = (*(parcel.put(array) for array in arrays), *(parcel.keep(array) for array in kept))
    channel.send(number, Arrays(arrays=indices), parcel)
    return parcel


ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    np.array(3.5),
    np.zeros((0, 5), np.uint8),
    np.array([True, False]),
    np.arange(6, dtype=">i4")[::2],
    np.array([np.nan, -0.0, np.inf], np.float16),
]


def test_arrays_arrive_with_their_bytes_shapes_and_dtypes(channels):
    ours, theirs = channels
    send(ours, ARRAYS)
    message = theirs.receive()
    for sent, got in zip(ARRAYS, message.arrays, strict=True):
        assert (got.shape, got.dtype) == (sent.shape, sent.dtype.newbyteorder("="))
        np.testing.assert_array_equal(got, sent)
        assert got.flags.writeable


def test_arrays_larger_than_the_sockets_buffer_need_no_reader(channels):
    ours, theirs = channels
    large = np.arange(2**21)
    send(ours, [large])
    np.testing.assert_array_equal(theirs.receive().arrays[0], large)


def test_an_array_that_stands_twice_in_a_message_is_sent_once(channels):
    array = np.ones(3)
    parcel = send(channels[0], [array, array], [array])
    assert len(parcel.arrays) == 1
    assert channels[1].receive().body.arrays == (0, 0, 0)


def test_what_lasts_is_sent_once_and_forgotten_when_it_is_gone(channels):
    ours, theirs = channels
    array = np.arange(5)
    assert [len(send(ours, kept=[array]).arrays) for _ in range(3)] == [1, 0, 0]
    first, *later = [theirs.receive().arrays[0] for _ in range(3)]
    assert all(again is first for again in later)
    assert len(ours.sent) == len(theirs.received) == 1
    del array
    gc.collect()
    send(ours)
    theirs.receive()
    assert len(ours.sent) == len(theirs.received) == 0


def test_an_array_at_the_address_of_one_that_is_gone_is_another(channels):
    ours, theirs = channels
    for value in range(50):
        array = np.full(4, value)
        send(ours, kept=[array])
        assert theirs.receive().arrays[0][0] == value
        del array
    assert len(theirs.received) <= 1


def test_a_message_that_was_not_sent_leaves_nothing_known(channels):
    ours, _ = channels
    parcel = Parcel(ours.sent)
    parcel.keep(np.ones(3))
    with pytest.raises(ModelFault, match="object"):
        parcel.put(np.array([object()]))
    assert len(ours.sent) == 0


def test_without_room_in_shared_memory_arrays_take_the_socket(links):
    link, unwritable = links[0], os.open(os.devnull, os.O_RDONLY)
    memory = SharedMemory(unwritable)
    send(Channel(Link(link.socket, memory, link.incoming)), ARRAYS)
    memory.close()
    for sent, got in zip(ARRAYS, Channel(links[1]).receive().arrays, strict=True):
        np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("shape", [(2,), (2**40,), (2**40, 2**40), (0, 2**40, 2**40, 2**40)], ids=str)
def test_a_length_beyond_the_memory_is_refused_before_anything_is_read(links, shape):
    links[0].outgoing.write([np.zeros(7, np.uint8)])
    frame = Frame(number=1, arrays=(Sent(dtype="float32", shape=shape),), body=Ping())
    links[0].socket.sendall(pack(frame))
    with pytest.raises(CorruptFrame):
        Channel(links[1]).receive()


def test_an_array_that_was_never_sent_is_refused(channels):
    ours, theirs = channels
    array = np.ones(2)
    ours.sent.add(array, 77)
    send(ours, kept=[array])
    with pytest.raises(CorruptFrame, match="never sent"):
        theirs.receive()


def test_garbage_and_a_cut_frame_are_refused(links):
    links[0].socket.sendall(b"garbage garbage")
    with pytest.raises(CorruptFrame):
        Channel(links[1]).receive()
    links[1].socket.sendall(struct.pack("<4sI", MAGIC, 100) + b"short")
    links[1].socket.shutdown(socket.SHUT_WR)
    with pytest.raises(CorruptFrame, match="cut short"):
        Channel(links[0]).receive()


def test_the_end_of_the_other_side_is_told(channels, links):
    links[0].socket.close()
    with pytest.raises(ChannelClosed):
        channels[1].receive()
    with pytest.raises(ChannelClosed):
        channels[1].send(1, Ping())


def test_memory_of_a_large_message_is_given_back(channels, links):
    ours, theirs = channels
    send(ours, [np.zeros(80 * 2**20, np.uint8)])
    theirs.receive()
    ours.trim()
    assert links[0].outgoing.num_bytes == 0


def test_an_index_beyond_the_arrays_is_refused():
    with pytest.raises(CorruptFrame, match="beyond"):
        at([np.ones(1)], 1)
