import pytest

from foreframe_engines import Priority
from foreframe_server.decodings import Decodings
from foreframe_server.jobs import Job
from foreframe_server.tickets import Ticket


@pytest.fixture
def ticket_of(make_query):
    def build(priority=Priority.CONTROLLER, size=4):
        return Ticket(Job("0", make_query(size=size, priority=priority), (1.0, 0.0)), None, 0.0)

    return build


def take_all(decodings):
    taken = []
    while decoding := decodings.take(is_controller_waiting=False):
        taken.append((decoding.ticket, [member.index for member in decoding.members]))
    return taken


def test_a_job_is_decoded_in_order_a_few_members_a_turn(ticket_of):
    decodings, ticket = Decodings(), ticket_of()
    decodings.put(ticket, ticket.job.members[:3], 2)
    decodings.put(ticket, ticket.job.members[3:], 2)
    assert decodings.holds(ticket)
    assert [members for _, members in take_all(decodings)] == [[0, 1], [2], [3]]
    assert not decodings
    assert not decodings.holds(ticket)


def test_controllers_members_go_before_bulk_members_and_before_every_forward(ticket_of):
    decodings, bulk, controller = Decodings(), ticket_of(Priority.BULK), ticket_of()
    decodings.put(bulk, bulk.job.members[:1], 1)
    decodings.put(controller, controller.job.members[:1], 1)
    assert decodings.take(is_controller_waiting=True).ticket is controller
    assert decodings.take(is_controller_waiting=False).ticket is bulk


def test_bulk_members_let_controllers_pass_but_only_so_many_times(ticket_of):
    decodings, bulk = Decodings(max_passes=2), ticket_of(Priority.BULK)
    decodings.put(bulk, bulk.job.members, 1)
    turns = [decodings.take(is_controller_waiting=True) for _ in range(6)]
    assert [turn is not None for turn in turns] == [False, False, True, False, False, True]


def test_a_job_that_is_dropped_is_decoded_no_more_and_its_neighbours_are(ticket_of):
    decodings, one, other = Decodings(), ticket_of(Priority.BULK), ticket_of(Priority.BULK)
    decodings.put(one, one.job.members, 1)
    decodings.put(other, other.job.members[:1], 1)
    decodings.drop(one)
    assert not decodings.holds(one)
    assert take_all(decodings) == [(other, [0])]
