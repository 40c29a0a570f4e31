from foreframe_server.metrics import Metrics
from foreframe_server.vital_signs import WORK_ROUTES, read_vital_signs


def test_nothing_was_done_yet():
    signs = read_vital_signs(Metrics().registry)

    assert (signs.num_requests, signs.num_refused, signs.cache_lookups, signs.queue_s) == (0, 0, 0, 0.0)


def test_work_of_every_route_is_added_up_and_nothing_else():
    metrics = Metrics()
    for seconds, route in zip((0.004, 0.2, 7.0), sorted(WORK_ROUTES), strict=False):
        metrics.count_request(route, "ok", seconds)
    metrics.count_request("/v1/predictions", "overloaded", 0.001)
    metrics.count_request("/v1/models", "ok", 0.001)

    signs = read_vital_signs(metrics.registry)

    assert (signs.num_requests, signs.num_refused) == (4, 1)
    assert (signs.at_most[0.005], signs.at_most[0.25], signs.at_most[10.0]) == (2, 3, 4)


def test_deadlines_queue_and_cache_are_told():
    metrics = Metrics()
    metrics.observe_queue(1.5, 0.0)
    for outcome in ("met", "met", "late"):
        metrics.count_deadline(outcome)
    for tier, event in (("memory", "hit"), ("memory", "miss"), ("redis", "hit"), ("memory", "stored")):
        metrics.count_cache(tier, event)

    signs = read_vital_signs(metrics.registry)

    assert signs.queue_s == 1.5
    assert signs.deadlines == {"met": 2, "late": 1}
    assert (signs.cache_lookups, signs.cache_hits) == (2, 2)
