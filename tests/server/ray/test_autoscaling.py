"""How many replicas work that waits needs."""

from dataclasses import dataclass, field

import pytest

from foreframe_server.ray.autoscaling import PENDING_STEP_MS, PendingWorkPolicy, wanted_replicas


@dataclass
class Told:
    current_num_replicas: int
    told: dict
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 8
    aggregated_metrics: dict = field(init=False)

    def __post_init__(self):
        self.aggregated_metrics = None if self.told is None else {PENDING_STEP_MS: self.told}


@pytest.mark.parametrize(
    ("pending_ms", "current", "wanted"),
    [
        (0, 1, 1),
        (499, 1, 1),
        (501, 1, 2),
        (1600, 2, 4),
        (1600, 4, 4),
        (1600, 8, 7),
        (900, 4, 4),
        (240, 4, 1),
        (0, 8, 1),
    ],
)
def test_each_replica_has_so_much_work_at_most_and_none_leaves_too_early(pending_ms, current, wanted):
    assert wanted_replicas(pending_ms, 500, current) == wanted


def test_they_never_come_and_go_while_the_work_is_the_same():
    for pending_ms in range(0, 8000, 37):
        for current in range(1, 20):
            settled = wanted_replicas(pending_ms, 500, current)
            assert wanted_replicas(pending_ms, 500, settled) == settled


def test_the_work_of_all_replicas_counts_within_bounds():
    policy = PendingWorkPolicy(target_ms=500)
    assert policy(Told(2, {"a": 700.0, "b": 900.0})) == (4, {})
    assert policy(Told(2, {"a": 70_000.0})) == (8, {})
    assert policy(Told(2, None, capacity_adjusted_min_replicas=2)) == (2, {})
    with pytest.raises(ValueError, match="target_ms"):
        PendingWorkPolicy(target_ms=0)
