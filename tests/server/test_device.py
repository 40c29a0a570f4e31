import asyncio
import threading

import pytest

from foreframe_server.device import DeviceThread
from foreframe_server.errors import NotReady
from foreframe_server.metrics import Metrics


class Counting(DeviceThread):
    """A device with so many turns of its own to do, of which one may fail."""

    def __init__(self, turns, failing=None):
        super().__init__(Metrics())
        self.left, self.failing, self.log = turns, failing, []

    def has_work(self):
        return self.left > 0

    def turn(self):
        if self.left == 0:
            return
        self.left -= 1
        self.log.append("turn")
        if self.left == self.failing:
            raise ArithmeticError("broken")

    def fault(self):
        self.log.append("fault")

    def finish(self):
        self.log.append("finish")


def test_commands_run_on_the_one_thread_and_return_or_raise():
    async def scenario():
        device = DeviceThread(Metrics())
        device.start()
        assert await device.run(lambda: threading.current_thread().name) == "foreframe-device"
        with pytest.raises(ZeroDivisionError):
            await device.run(lambda: 1 // 0)
        assert device.is_ready
        await device.join()
        assert not device.is_ready
        with pytest.raises(NotReady):
            await device.run(lambda: 1)

    asyncio.run(scenario())


def test_a_device_that_was_not_started_takes_nothing_and_ends_at_once():
    async def scenario():
        device = DeviceThread(Metrics())
        assert not device.is_ready
        with pytest.raises(NotReady):
            await device.run(lambda: 1)
        await device.join()

    asyncio.run(scenario())


def test_a_turn_that_fails_is_answered_and_the_next_one_comes(logs):
    async def scenario():
        device = Counting(3, failing=1)
        device.start()
        while device.left:
            await device.run(lambda: None)
        await device.join()
        return device.log

    assert asyncio.run(scenario()) == ["turn", "turn", "fault", "turn", "finish"]
    assert [line["event"] for line in logs] == ["device.turn_failed"]
