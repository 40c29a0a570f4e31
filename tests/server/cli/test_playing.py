"""The pace of a replay on a clock that only questions and waits move."""

import pytest

from foreframe_server.cli.playing import Due, Pace, play


class Watchmaker:
    """Time that passes while a question is answered and while it is waited."""

    def __init__(self, answer_s):
        self.now_s, self.answer_s = 50.0, answer_s
        self.asked_at_s = []

    def clock(self):
        return self.now_s

    def sleep(self, seconds):
        assert seconds > 0
        self.now_s += seconds

    def ask(self, asked):
        self.asked_at_s.append(round(self.now_s - 50.0, 6))
        self.now_s += self.answer_s
        return asked * 10


def run(answer_s, *, speed=1.0, count=6, every_s=0.1):
    watch = Watchmaker(answer_s)
    dues = [Due(number * every_s, number) for number in range(count)]
    return watch, list(play(dues, watch.ask, Pace(speed, watch.clock, watch.sleep)))


def test_every_question_is_asked_when_it_is_due():
    watch, played = run(0.04)
    assert watch.asked_at_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [each.answer for each in played] == [0, 10, 20, 30, 40, 50]
    assert all(each.elapsed_ms == pytest.approx(40) for each in played)


def test_a_slow_answer_skips_what_its_successor_has_overtaken():
    watch, played = run(0.25)
    assert [each.answer for each in played] == [0, None, 20, None, None, 50]
    assert watch.asked_at_s == pytest.approx([0.0, 0.25, 0.5])


def test_the_last_question_is_always_asked():
    _, played = run(10.0)
    assert [each.answer for each in played] == [0, None, None, None, None, 50]


def test_twice_the_speed_takes_half_the_time():
    watch, _ = run(0.01, speed=2.0)
    assert watch.asked_at_s == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25])


def test_nothing_to_ask_is_nothing_played():
    assert run(0.1, count=0)[1] == []
