"""Two replicas of a model that sleeps answer nearly twice as much as one, and the same."""

import pytest

from foreframe_server.cli.bench_ray import measure_scaling

pytestmark = pytest.mark.long


def test_two_replicas_answer_nearly_twice_as_much_and_the_same(cluster):
    scaling = measure_scaling(cluster, duration_s=3.0)
    assert scaling.is_equal
    assert scaling.ratio >= 1.7, scaling
    assert scaling.ensemble_two_s < 0.75 * scaling.ensemble_one_s, scaling
