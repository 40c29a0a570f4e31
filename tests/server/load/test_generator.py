"""The generator on a clock of the test's own: it asks on time, counts from when it was due, and cannot hide delay."""

import asyncio
from itertools import count

import pytest

from foreframe_server.load.generator import play, saturate
from foreframe_server.load.records import Reply
from foreframe_server.load.summary import check_schedule
from foreframe_server.load.traces import Arrival, Ask, constant

ASK = Ask()


class FakeTime:
    """Time that passes only while somebody sleeps, and `oversleep_s` longer than asked."""

    def __init__(self, oversleep_s=0.0):
        self.now = 50.0
        self.oversleep_s = oversleep_s

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        end = self.now + seconds + self.oversleep_s
        for _ in range(5):
            await asyncio.sleep(0)
        self.now = max(self.now, end)


def play_on(time, trace, work=lambda arrival: None, **options):
    def prepare(arrival):
        async def send():
            work(arrival)
            return Reply("ok")

        return send

    return asyncio.run(play(trace, prepare, clock=time.clock, sleep=time.sleep, **options))


def test_questions_go_out_when_they_are_due():
    records = play_on(FakeTime(), constant(10, 1, ASK))
    assert [record.sent_s for record in records] == pytest.approx([record.arrival.due_s for record in records])
    assert check_schedule(records, 1e-3).is_on_schedule


def test_a_generator_that_oversleeps_is_caught():
    records = play_on(FakeTime(oversleep_s=0.03), constant(10, 1, ASK))
    assert not check_schedule(records, 10.0).is_on_schedule


def test_a_server_that_holds_up_the_asker_cannot_hide_it():
    time = FakeTime()

    def stall(arrival):
        time.now += 2.0 if arrival.content == 0 else 0.0

    records = play_on(time, constant(10, 1, ASK), stall)
    assert [round(record.latency_ms) for record in records[:4]] == [2000, 1900, 1800, 1700]
    assert not check_schedule(records, 10.0).is_on_schedule


def test_slow_answers_do_not_hold_back_later_questions():
    time, released = FakeTime(), []

    def prepare(arrival):
        async def send():
            if arrival.content < 9:
                future = asyncio.get_running_loop().create_future()
                released.append(future)
                await future
            else:
                for future in released:
                    future.set_result(None)
            return Reply("ok")

        return send

    records = asyncio.run(play(constant(10, 1, ASK), prepare, clock=time.clock, sleep=time.sleep))
    assert [record.sent_s for record in records] == pytest.approx([index / 10 for index in range(10)])
    assert records[0].latency_ms == pytest.approx(900)


def test_a_question_is_prepared_before_it_is_due():
    time, prepared = FakeTime(), []

    def prepare(arrival):
        prepared.append((arrival.content, time.now))

        async def send():
            return Reply("ok")

        return send

    asyncio.run(play(constant(1, 3, ASK), prepare, clock=time.clock, sleep=time.sleep))
    assert prepared == [(0, 50), (1, 50), (2, 51)]


def test_with_one_in_flight_questions_are_served_to_the_end_in_order():
    running, served, most = 0, [], 0

    def prepare(arrival):
        async def send():
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            served.append(arrival.content)
            running -= 1
            return Reply("ok")

        return send

    trace = [Arrival(0.0, ASK, content) for content in range(6)]
    asyncio.run(play(trace, prepare, max_in_flight=1))
    assert (most, served) == (1, list(range(6)))
    most = 0
    asyncio.run(play(trace, prepare))
    assert most == 6


def test_askers_never_pause_until_the_time_is_up():
    time, running, most = FakeTime(), 0, 0

    def prepare(arrival):
        async def send():
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            time.now += 0.1
            running -= 1
            return Reply("ok")

        return send

    questions = (Arrival(0.0, ASK, content) for content in count())
    records = asyncio.run(saturate(questions, prepare, askers=3, duration_s=1.0, clock=time.clock))
    assert most == 3
    assert 10 <= len(records) <= 13
    assert len({record.arrival.content for record in records}) == len(records)
    assert all(record.lag_ms == 0 for record in records)
