"""What work takes, from files and from a server's metrics."""

import json

import numpy as np
import pytest

from foreframe_server.calls import Timings
from foreframe_server.capacity.costs import Costs, CostsError, Seconds, costs_from_json, costs_from_metrics
from foreframe_server.cost_model import CostModel
from foreframe_server.metrics import WIRE_STAGES, Metrics


def test_draws_have_the_mean_and_the_quantile_that_were_measured():
    seconds, rng = Seconds(0.010, 0.012), np.random.default_rng(0)

    drawn = np.array([seconds.draw(rng) for _ in range(20_000)])

    assert drawn.mean() == pytest.approx(0.010, rel=0.02)
    assert np.quantile(drawn, 0.75) == pytest.approx(0.0115, rel=0.05)
    assert drawn.min() > 0


def test_equal_mean_and_quantile_draw_one_value():
    rng = np.random.default_rng(0)

    assert {Seconds(0.01, 0.01).draw(rng) for _ in range(9)} == {0.01}
    assert Seconds(0.0, 0.0).draw(rng) == 0


def test_a_forward_takes_what_the_next_larger_known_size_takes(costs):
    costs = Costs(costs.prepare, costs.frame, {2: Seconds(2, 2), 8: Seconds(8, 8)}, 0, 0)

    assert [costs.step(rows).mean for rows in (1, 2, 3, 8, 9)] == [2, 2, 8, 8, 8]


def test_a_faster_device_leaves_the_wire_as_it_is(costs):
    fast = costs.sped_up(10)

    assert fast.step(1).mean == pytest.approx(0.001)
    assert (fast.prepare.mean, fast.before_s, fast.after_s) == (pytest.approx(0.0005), 0.002, 0.003)


def test_costs_survive_a_file_alone_and_within_a_report(costs):
    text = json.dumps(costs.to_json())

    assert costs_from_json(text) == costs
    assert costs_from_json(f'{{"experiment": "bench", "facts": {{"costs": {text}}}}}') == costs


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", '{"facts": 1}', '{"prepare": {"mean": 1}}'],
    ids=["nothing", "a list", "empty", "a number", "odd facts", "half a cost"],
)
def test_what_holds_no_costs_is_refused(text):
    with pytest.raises(CostsError):
        costs_from_json(text)


@pytest.mark.parametrize("change", [{"steps": {}}, {"steps": {"1": {"mean": 0, "high": 0}}}, {"before_s": -1}])
def test_costs_that_cannot_be_are_refused(costs, change):
    with pytest.raises(CostsError):
        costs_from_json(json.dumps({**costs.to_json(), **change}))


def test_a_servers_metrics_say_what_its_cost_model_learned():
    metrics, model = Metrics(), CostModel((1, 2))
    model.fit({1: 0.010, 2: 0.011})
    model.observe_prepare(0.004)
    model.observe_decode(8, 0.008)
    metrics.observe_costs(model.known())
    metrics.observe_stages(Timings(receive=1.0, decode=2.0, reduce=3.0, respond=4.0), WIRE_STAGES)
    metrics.observe_stages(Timings(reduce=3.0))

    costs = costs_from_metrics(metrics.scrape().decode())

    assert costs.steps == {1: Seconds(0.010, 0.010), 2: Seconds(0.011, 0.011)}
    assert (costs.prepare, costs.frame) == (Seconds(0.004, 0.004), Seconds(0.001, 0.001))
    assert costs.before_s == pytest.approx(0.003)
    assert costs.after_s == pytest.approx(0.007)


def test_a_server_that_has_done_nothing_yet_says_nothing():
    with pytest.raises(CostsError):
        costs_from_metrics(Metrics().scrape().decode())
