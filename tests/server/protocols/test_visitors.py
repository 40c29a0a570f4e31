"""Who may connect and who leaves first, without a socket."""

from collections import Counter
from dataclasses import dataclass

import structlog.testing

from foreframe_server.protocols.visitors import Visitors


@dataclass
class Guest:
    idle_since_s: float | None = 0.0
    num_served: int = 0
    has_left: bool = False

    def check(self, now_s):
        self.has_left = now_s > 100

    def leave(self):
        self.has_left = True


def fill(visitors, *guests, address="10.0.0.1", now_s=50.0):
    return [visitors.enter(guest, guest, address, now_s) for guest in map(Key, guests)]


class Key:
    """A guest as the key and the visitor in one."""

    def __init__(self, guest):
        self.guest = guest

    def __getattr__(self, name):
        return getattr(self.guest, name)


def codes(errors):
    return [error and error.code for error in errors]


def test_an_address_may_hold_so_many_and_others_as_many_again():
    visitors = Visitors(max_connections=100, max_per_address=2)
    busy = [Guest(idle_since_s=None) for _ in range(5)]
    assert codes(fill(visitors, *busy[:3])) == [None, None, "too_many_connections"]
    assert codes(fill(visitors, *busy[3:], address="10.0.0.2")) == [None, None]
    assert len(visitors) == 4


def test_this_machine_and_proxies_may_hold_more():
    visitors = Visitors(max_connections=100, max_per_address=1, free=["10.0.0.9"])
    for address in ("127.0.0.1", "::1", None, "10.0.0.9"):
        assert codes(fill(visitors, Guest(None), Guest(None), address=address)) == [None, None]
    assert codes(fill(visitors, Guest(None), Guest(None), address="fe80::1%eth0")) == [None, "too_many_connections"]


def test_strangers_leave_before_guests_and_the_longest_idle_first():
    visitors = Visitors(max_connections=4, max_per_address=4)
    served, old, young, busy = Guest(1.0, num_served=9), Guest(20.0), Guest(30.0), Guest(None)
    fill(visitors, served, young, busy, old)
    assert codes(fill(visitors, Guest(None))) == [None]
    assert [guest.has_left for guest in (served, old, young, busy)] == [False, True, False, False]
    fill(visitors, Guest(None), Guest(None))
    assert [guest.has_left for guest in (served, old, young, busy)] == [True, True, True, False]


def test_a_robot_between_two_requests_stays():
    visitors = Visitors(max_connections=1, max_per_address=1)
    robot = Guest(49.5, num_served=3)
    fill(visitors, robot)
    assert codes(fill(visitors, Guest(), now_s=50.0)) == ["too_many_connections"]
    assert codes(fill(visitors, Guest(), now_s=50.0, address="::1")) == ["overloaded"]
    assert codes(fill(visitors, Guest(), now_s=51.0)) == [None]
    assert robot.has_left


def test_who_leaves_makes_room_once():
    visitors = Visitors(max_connections=9, max_per_address=1)
    first = Guest(None)
    visitors.enter("a", first, "10.0.0.1", 0.0)
    assert visitors.enter("a", Guest(None), "10.0.0.1", 0.0) is None
    visitors.exit("a")
    visitors.exit("a")
    assert len(visitors) == 0
    assert codes(fill(visitors, Guest(None), Guest(None))) == [None, "too_many_connections"]


def test_refusals_are_counted_each_and_logged_together():
    told = Counter()
    visitors = Visitors(max_connections=9, max_per_address=1, on_refusal=lambda code: told.update([code]))
    for _ in range(1000):
        visitors.note("malformed_request")
    with structlog.testing.capture_logs() as lines:
        visitors.check(0.0)
        visitors.check(0.0)
    assert told == {"malformed_request": 1000}
    assert [(line["code"], line["count"]) for line in lines] == [("malformed_request", 1000)]
