"""`bench` from the command line on the toy: what is counted is right; times are not looked at."""

import numpy as np

from foreframe_engines import Bundle
from foreframe_engines.episodes import Clip
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.benchmarks import Plans
from foreframe_server.cli.bench_scores import compare_over_http
from foreframe_server.cli.overrides import read_private
from foreframe_server.cli.serving import running_server
from foreframe_server.cli.token_data import long_clip
from foreframe_server.opening import given


def test_scores_are_compared_for_a_long_and_a_short_future(run_json, token_bundle, tmp_path):
    out = tmp_path / "bench.json"
    arguments = ("--bundle", token_bundle, "--candidates", 4, "--repeats", 1, "--no-http", "--out", out)
    record = run_json("bench", "scores", *arguments)
    long, short = record["engine"]
    assert (long["history_grids"], long["future_grids"], short["future_grids"]) == (8, 8, 1)
    assert (long["reads_ratio"], short["reads_ratio"]) == (0.65, round(11 / 32, 4))
    assert long["largest_cost_difference_nats"] == 0
    assert long["wall_time_ratio"] > 0
    assert out.is_file()


def test_history_is_timed_up_to_what_the_model_reads(run_json, token_bundle):
    record = run_json("bench", "history", "--bundle", token_bundle, "--repeats", 1)
    assert record["history_grids"] == list(range(1, 16))
    assert len(record["kept_ms"]) == len(record["read_again_ms"]) == 15
    assert record["largest_difference_nats"] == 0


def test_a_models_own_data_is_taken_where_given(run_json, token_bundle, episodes, tmp_path):
    data = episodes(tmp_path / "test", [8_000_000], num_frames=20)
    run_json("bench", "history", "--bundle", token_bundle, "--data", data, "--repeats", 1)


def test_a_shipped_clip_runs_forth_and_back_to_be_long_enough(token_bundle):
    engine = ToyLikelihoodEngine(Bundle.open(token_bundle).contract)
    clip = long_clip(engine, None, token_bundle, 16)
    assert clip.frames.shape[0] == len(clip.states) == 16
    np.testing.assert_array_equal(clip.frames[12], clip.frames[10])
    np.testing.assert_array_equal(clip.states[15], clip.states[7])


def test_over_http_the_candidates_of_one_request_cost_what_they_cost_alone():
    contract = toy_contract(size=16, tokens=toy_tokens())
    engine = ToyLikelihoodEngine(contract)
    rng = np.random.default_rng(0)
    frames, states = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), rng.standard_normal((16, 3), np.float32)
    clip = Clip(0, 0, frames, states, np.zeros((16, 16, 16), np.uint8))
    candidates = rng.standard_normal((5, 3, 3), np.float32)
    plans = Plans(frames[:8], states[:8], candidates)
    settings = read_private(None)
    with running_server(settings, given(ToyRolloutEngine(contract), engine)) as address:
        already = sum(engine.read_rows)
        record = compare_over_http(address, contract, clip, plans, 2)
    assert (record["candidates"], record["future_grids"]) == (5, 3)
    assert record["largest_cost_difference_nats_per_token"] == 0
    assert record["wall_time_ratio"] > 0
    assert sum(engine.read_rows) - already == 3 * (7 + 5 * 3) + 2 * 5 * (7 + 3)
