"""What an agent chooses: rows themselves, displacements of some dimensions, and what is refused."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="the extra gym is not installed")

from foreframe_client import InvalidRequest, ProtocolError, StateSchema
from foreframe_client.gym import absolute, relative

NAMES = ("hip", "elbow", "wrist")
RANGES = {"low": [-1.0, -2.0, 0], "high": [1.0, 2.0, 3]}
SCHEMA = StateSchema("arm", NAMES, ("rad",) * 3, RANGES)
LAST = np.array([0.1, 0.2, 0.3], np.float32)


def test_absolute_actions_are_rows_within_the_training_range():
    actions = absolute(SCHEMA)
    assert actions.space.low.tolist() == RANGES["low"]
    assert actions.space.high.tolist() == RANGES["high"]
    assert actions.space.dtype == np.float32
    assert np.array_equal(actions.decode(LAST + 1, LAST), LAST + 1)


def test_a_schema_without_a_range_is_no_schema_of_a_server():
    with pytest.raises(ProtocolError, match="/low"):
        absolute(StateSchema("arm", NAMES, ("rad",) * 3, {}))


@pytest.mark.parametrize("dims", [("wrist", "hip"), (2, 0), ("wrist", 0)])
def test_relative_actions_move_what_is_named_and_leave_the_last_row_alone(dims):
    actions = relative(dims, largest=[0.5, 2.0])(SCHEMA)
    row = actions.decode(np.array([1, -0.5], np.float32), LAST)
    assert np.allclose(row, [0.1 - 1.0, 0.2, 0.3 + 0.5])
    assert row.dtype == np.float32
    assert np.allclose(LAST, [0.1, 0.2, 0.3])
    assert (actions.space.low.tolist(), actions.space.high.tolist()) == ([-1, -1], [1, 1])


@pytest.mark.parametrize(
    ("dims", "largest", "says"),
    [
        (["knee"], 0.1, "'knee'"),
        ([3], 0.1, "3 dimensions"),
        ([-1], 0.1, "-1"),
        ([0, "hip"], 0.1, "each once"),
        ([], 0.1, "need dimensions"),
        ([0, 1], [0.1], "2 of them"),
        ([0], -0.1, "above 0"),
        ([0], np.nan, "above 0"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(dims, largest, says):
    with pytest.raises(InvalidRequest, match=says):
        relative(dims, largest)(SCHEMA)
