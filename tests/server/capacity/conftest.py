import pytest

from foreframe_engines.testing import toy_contract
from foreframe_server.capacity.costs import Costs, Seconds


def exactly(seconds):
    return Seconds(seconds, seconds)


@pytest.fixture
def contract():
    return toy_contract()


@pytest.fixture
def costs():
    """A device that prepares in 5 ms, steps one or two rows in 10 ms, decodes a frame in 1 ms; 2 and 3 ms of wire."""
    return Costs(exactly(0.005), exactly(0.001), {1: exactly(0.010), 2: exactly(0.010)}, 0.002, 0.003)
