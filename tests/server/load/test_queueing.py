"""M/D/1 against its published mean, against a simulation of it, and against one server by hand."""

import numpy as np
import pytest

from foreframe_server.load.queueing import ideal_sojourns, sojourn_quantile, waiting_probability


@pytest.mark.parametrize(("load", "services"), [(0.5, 4.3), (0.7, 7.5), (0.8, 11.4), (0.9, 23)])
def test_the_tail_of_the_ideal_server_is_that_of_the_tables(load, services):
    assert sojourn_quantile(0.99, 1.0, load) == pytest.approx(services, abs=0.35)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_pollaczek_and_khinchines(load):
    shares = np.linspace(0.0005, 0.9995, 1000)
    waits = [sojourn_quantile(share, 2.0, load) - 2.0 for share in shares]
    assert np.mean(waits) == pytest.approx(2.0 * load / (2 * (1 - load)), rel=0.02)


def test_quantiles_are_in_the_unit_of_the_service_time():
    assert sojourn_quantile(0.99, 0.05, 0.7) == pytest.approx(0.05 * sojourn_quantile(0.99, 1.0, 0.7))


def test_nobody_waits_with_the_share_of_idle_time():
    assert waiting_probability(0.0, 1.0, 0.7) == pytest.approx(0.3)


def test_the_formula_is_what_a_simulated_server_does():
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / 0.7, 200_000))
    assert np.quantile(ideal_sojourns(arrivals, 1.0), 0.99) == pytest.approx(sojourn_quantile(0.99, 1.0, 0.7), rel=0.05)


def test_one_server_takes_one_at_a_time():
    assert ideal_sojourns([0, 1, 10], 4) == [4, 7, 4]
