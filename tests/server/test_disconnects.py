"""A look at whether a client has left tells at once, and takes nothing from who waits for its messages."""

import asyncio

import pytest

from foreframe_server.disconnects import has_left


@pytest.mark.parametrize(("kind", "is_gone"), [("http.disconnect", True), ("http.request", False)])
def test_a_message_that_is_there_is_told_at_once(kind, is_gone):
    async def receive():
        return {"type": kind}

    assert has_left(receive()) is is_gone


def test_a_client_that_says_nothing_has_not_left_and_is_heard_later():
    async def scenario():
        messages = asyncio.Queue()
        assert not has_left(messages.get())
        messages.put_nowait({"type": "http.disconnect"})
        assert has_left(messages.get())

    asyncio.run(scenario())


def test_what_receiving_raises_is_raised():
    async def receive():
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        has_left(receive())
