"""The cost protocol of planning libraries, with arrays, with something that acts like a tensor, and with torch."""

from __future__ import annotations

import subprocess
import sys

import httpx
import numpy as np
import pytest

from foreframe_client import Client, Constraint, InvalidRequest, Objective
from foreframe_client.cost_model import ConstrainedCostModel, CostModel

FRAMES = np.stack([np.full((3, 4, 5, 3), 10 * row, np.uint8) for row in (1, 2)])
STATES = np.stack([np.full((3, 2), row, np.float64) for row in (1, 2)])
GOALS = np.stack([np.full((4, 5, 3), 5 * row, np.uint8) for row in (1, 2)])
INFO = {"pixels": FRAMES, "state": STATES, "goal": GOALS, "step": "not read"}
CANDIDATES = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
BOUND = (Constraint(Objective.spread(), 0.25),)


class Tensor:
    """What a cost model may expect of a tensor, and no more."""

    def __init__(self, values, device="far"):
        self.values, self.device = np.asarray(values), device

    def __getitem__(self, index):
        return Tensor(self.values[index], self.device)

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.values, "near")

    def numpy(self):
        assert self.device == "near"
        return self.values

    def new_tensor(self, values):
        return Tensor(np.asarray(values, self.values.dtype), self.device)


@pytest.fixture
def client(server, answer, scores):
    server.script = [answer(scores)]
    with Client(transport=httpx.MockTransport(server)) as client:
        yield client


def test_each_observation_is_one_call(client, server):
    costs = CostModel(client.score).get_cost(INFO, CANDIDATES)
    np.testing.assert_array_equal(costs, [[np.inf, 1.5, np.inf]] * 2)
    first, second = server.posted()
    np.testing.assert_array_equal(first["candidates"]["values"], CANDIDATES[0])
    np.testing.assert_array_equal(second["candidates"]["values"], CANDIDATES[1])
    np.testing.assert_array_equal(second["observation"]["cameras"]["head"]["data"], FRAMES[1])
    np.testing.assert_array_equal(second["observation"]["state"]["values"], STATES[1])
    np.testing.assert_array_equal(second["objectives"][0]["params"]["image"]["data"], GOALS[1])


def test_what_a_solver_repeats_for_each_candidate_is_read_once(client, server):
    repeated = {name: np.repeat(INFO[name][:, None], 3, axis=1) for name in ("pixels", "state", "goal")}
    CostModel(client.score).get_cost(repeated, CANDIDATES)
    assert server.posted()[1]["observation"]["cameras"]["head"]["data"].shape == (3, 4, 5, 3)
    assert server.posted()[1]["objectives"][0]["params"]["image"]["data"].shape == (4, 5, 3)


def test_tensors_are_answered_with_tensors_of_their_kind_and_place(client, server):
    info = {name: Tensor(INFO[name]) for name in ("pixels", "state", "goal")}
    costs = CostModel(client.score).get_cost(info, Tensor(CANDIDATES))
    assert (type(costs), costs.device, costs.values.dtype, costs.values.shape) == (Tensor, "far", np.float32, (2, 3))
    np.testing.assert_array_equal(server.posted()[0]["candidates"]["values"], CANDIDATES[0])


def test_torch_tensors_are_answered_with_torch_tensors(client):
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        costs = CostModel(client.score).get_cost(INFO, torch.from_numpy(CANDIDATES))
    assert (costs.dtype, tuple(costs.shape)) == (torch.float32, (2, 3))
    assert torch.topk(costs, 1, dim=1, largest=False).indices.tolist() == [[1], [1]]


def test_torch_is_not_imported():
    code = "import sys, foreframe_client.cost_model, foreframe_client.planning; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_actions_are_decoded_to_states(client, server):
    def decode(info, row, actions):
        assert info is INFO
        return np.repeat(actions.sum(axis=-1, keepdims=True), 25, axis=-1) + row

    CostModel(client.score, decode=decode).get_cost(INFO, CANDIDATES)
    sent = server.posted()[1]["candidates"]["values"]
    assert sent.shape == (3, 2, 25)
    assert sent[0, 0, 0] == CANDIDATES[1, 0, 0].sum() + 1


def test_plans_of_which_none_is_finite_cost_infinity_without_a_call(client, server):
    plans = CANDIDATES.copy()
    plans[0] = np.nan
    costs = CostModel(client.score).get_cost(INFO, plans)
    np.testing.assert_array_equal(costs, [[np.inf] * 3, [np.inf, 1.5, np.inf]])
    assert len(server.posted()) == 1


def test_constraints_are_satisfied_at_zero_and_below(client, server):
    model = ConstrainedCostModel(client.score, constraints=BOUND)
    np.testing.assert_array_equal(model.get_constraints(INFO, CANDIDATES), [[[0.25], [-0.125], [np.inf]]] * 2)
    assert server.posted()[0]["constraints"] == [{"kind": "spread", "params": {}, "max": 0.25}]


def test_solvers_that_look_for_constraints_find_them_only_where_there_are_some():
    assert not hasattr(CostModel, "get_constraints")
    assert all(hasattr(ConstrainedCostModel, name) for name in ("get_cost", "criterion", "get_constraints"))


@pytest.mark.parametrize(
    ("info", "candidates", "words"),
    [
        (INFO, CANDIDATES[0], "B S H D"),
        ({"state": STATES, "goal": GOALS}, CANDIDATES, "'pixels'"),
        ({"pixels": FRAMES, "state": STATES}, CANDIDATES, "'goal'"),
    ],
)
def test_what_a_cost_model_cannot_read_is_named(client, server, info, candidates, words):
    with pytest.raises(InvalidRequest, match=words):
        CostModel(client.score).get_cost(info, candidates)
    assert server.requests == []
