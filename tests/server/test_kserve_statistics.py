from foreframe_server.calls import CacheResult, ReadTimings, Timings
from foreframe_server.kserve_statistics import InferenceCounts, work_ms


def test_the_stages_of_a_batch_are_its_slowest_row_s():
    counts = InferenceCounts(clock=lambda: 12.5)
    quick = Timings(receive=1, decode=2, queue=1, denoise=4, respond=1)
    slow = Timings(receive=1, decode=2, queue=3, encode=1, denoise=40, reduce=2, respond=1)

    counts.count_success([quick, slow], [CacheResult.HIT, CacheResult.MISS], milliseconds=60)

    assert (counts.num_rows, counts.num_computed, counts.last_inference_ms) == (2, 1, 12_500)
    assert (counts.success.count, counts.success.ns) == (1, 60_000_000)
    assert counts.queue.ns == 3_000_000
    assert counts.compute_input.ns == 3_000_000
    assert counts.compute_infer.ns == 43_000_000
    assert counts.compute_output.ns == 1_000_000
    assert (counts.cache_hit.count, counts.cache_miss.count) == (1, 1)


def test_a_model_without_a_cache_counts_no_misses():
    counts = InferenceCounts()
    counts.count_success([ReadTimings(queue=1, read=5)], [], milliseconds=7)

    assert (counts.num_computed, counts.cache_hit.count, counts.cache_miss.count) == (1, 0, 0)
    assert counts.compute_infer.ns == 5_000_000


def test_a_failure_is_no_success():
    counts = InferenceCounts()
    counts.count_failure(3)

    assert (counts.fail.count, counts.fail.ns, counts.success.count, counts.num_rows) == (1, 3_000_000, 0, 0)


def test_work_is_what_is_not_the_wire_s():
    assert work_ms(Timings(receive=100, decode=100, respond=100, total=400, step_batch_mean=9, queue=1, denoise=2)) == 3
