from prometheus_client.parser import text_string_to_metric_families

from foreframe_engines.testing import toy_contract
from foreframe_server.calls import ReadTimings, Timings
from foreframe_server.metrics import OTHER, Metrics


def scraped(metrics):
    families = text_string_to_metric_families(metrics.scrape().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def fed():
    metrics = Metrics()
    metrics.describe_model(toy_contract(), "bitwise")
    metrics.count_request("/v1/predictions", "ok", 0.2)
    metrics.observe_stages(Timings(queue=2.0, denoise=30.0))
    metrics.observe_members("requested", 8)
    metrics.observe_batch(3)
    metrics.observe_stages(ReadTimings(read=20.0))
    metrics.observe_bits(4.5)
    metrics.observe_observations(2, 4096)
    metrics.observe_queue(1.5, 0.25)
    metrics.observe_device(10.0, is_busy=True)
    metrics.count_deadline("met")
    metrics.count_cache("memory", "hit")
    metrics.count_superseded()
    metrics.count_cancelled("queue")
    metrics.count_rejected("overloaded")
    return metrics


def test_a_scrape_holds_every_series_under_its_documented_name():
    samples = scraped(fed())
    route = (("route", "/v1/predictions"),)
    assert samples["foreframe_requests_total", (("code", "ok"), *route)] == 1
    assert samples["foreframe_request_seconds_count", route] == 1
    assert samples["foreframe_stage_seconds_sum", (("stage", "denoise"),)] == 0.03
    assert samples["foreframe_stage_seconds_count", (("stage", "queue"),)] == 1
    assert samples["foreframe_stage_seconds_sum", (("stage", "read"),)] == 0.02
    assert samples["foreframe_bits_per_token_sum", ()] == 4.5
    assert samples["foreframe_observations", ()] == 2
    assert samples["foreframe_observation_bytes", ()] == 4096
    assert samples["foreframe_queue_step_seconds", ()] == 1.5
    assert samples["foreframe_cost_error_ratio", ()] == 0.25
    assert samples["foreframe_step_batch_rows_sum", ()] == 3
    assert samples["foreframe_deadline_total", (("outcome", "met"),)] == 1
    assert samples["foreframe_ensemble_members_sum", (("kind", "requested"),)] == 8
    assert samples["foreframe_cache_events_total", (("result", "hit"), ("tier", "memory"))] == 1
    assert samples["foreframe_superseded_total", ()] == 1
    assert samples["foreframe_cancelled_total", (("stage", "queue"),)] == 1
    assert samples["foreframe_rejected_total", (("reason", "overloaded"),)] == 1
    assert any(name == "foreframe_model_info" and ("model", "toy") in labels for name, labels in samples)


def test_an_open_websocket_is_counted_for_as_long_as_it_is_open():
    metrics = Metrics()
    with metrics.connected(), metrics.connected():
        assert scraped(metrics)["foreframe_connections", ()] == 2
    assert scraped(metrics)["foreframe_connections", ()] == 0


def test_a_stage_that_took_no_time_is_not_counted():
    assert ("foreframe_stage_seconds_count", (("stage", "encode"),)) not in scraped(fed())


def test_the_busy_ratio_follows_the_device():
    metrics = Metrics()
    metrics.observe_device(100.0, is_busy=True)
    assert scraped(metrics)["foreframe_engine_busy_ratio", ()] > 0.99
    metrics.observe_device(100.0, is_busy=False)
    assert scraped(metrics)["foreframe_engine_busy_ratio", ()] < 0.01


def test_unknown_label_values_cannot_add_series():
    metrics = Metrics()
    for index in range(50):
        word = f"made up {index}"
        metrics.count_request(word, word, 0.1)
        metrics.observe_members(word, 1)
        metrics.count_deadline(word)
        metrics.count_cache(word, word)
        metrics.count_cancelled(word)
        metrics.count_rejected(word)
    samples = scraped(metrics)
    assert samples["foreframe_requests_total", (("code", OTHER), ("route", OTHER))] == 50
    assert not any("made up" in value for _, labels in samples for _, value in labels)


def test_registries_are_separate():
    one, other = Metrics(), Metrics()
    one.count_superseded()
    assert scraped(other)["foreframe_superseded_total", ()] == 0
