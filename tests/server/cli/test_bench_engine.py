"""`bench engine` and `bench roofline` on the built-in model: what is compared is right; times are not looked at."""

import json

import numpy as np
import pytest

from foreframe_engines import StepRow
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_models import roofline, torch_engine
from foreframe_server.cli import bench_engine, bench_stages

QUICK = ("--rounds", 1)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    """Nothing here looks at how fast the machine is."""
    monkeypatch.setattr(roofline, "_ROUNDS", 1)
    monkeypatch.setattr(roofline, "_WORTH_TIMING_MS", 0.1)


def test_backends_are_timed_beside_each_other_and_compared(run_json, tmp_path):
    out, page, text = (tmp_path / name for name in ("engine.json", "engine.html", "engine.md"))
    files = ("--out", out, "--html", page, "--markdown", text)
    record = run_json("bench", "engine", "--backend", "onnxruntime,torch", "--rounds", 2, *files)
    own, other = (record["backends"][name] for name in ("onnxruntime", "torch"))
    assert record["compared_with"] == "onnxruntime"
    assert (own["states apart, share"], own["largest difference of pixels"]) == (0, 0)
    assert 0 < other["states apart, share"] < 1e-5
    assert other["largest difference of pixels"] <= 1
    assert own["step of 16, times faster"] == 1
    timed = {"encode, ms", "condition, ms", "step of 1, ms", "decode all frames, ms", "encode, fraction of the floor"}
    assert set(own) == set(other) >= timed
    share, gain = record["bars"]
    assert share["measure"] == "step of 16, share of the fastest product"
    assert gain["measure"] == "step of 16, times faster than torch"
    assert share["value"] > 0
    assert len(share["rounds"]) == len(gain["rounds"]) == 2
    assert {"step of 16, onnxruntime", "step of 16, torch"} <= {each["name"] for each in record["samples"]}
    assert json.loads(out.read_text()) == record
    assert page.read_text().count("<svg") == 6
    assert "| step of 16, times faster than torch |" in text.read_text()


def test_what_is_not_here_is_said_and_the_rest_is_timed(run_json, monkeypatch):
    monkeypatch.setattr(bench_engine, "USUAL", ("onnxruntime", "torch-cuda"))
    record = run_json("bench", "engine", "--members", 1, *QUICK)
    assert list(record["backends"]) == ["onnxruntime"]
    assert "'cuda' was asked for" in record["missing"]["torch-cuda"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("torch-cuda", "torch-cuda: torch"), ("abacus", "there is no backend 'abacus'")],
)
def test_a_backend_that_cannot_be_had_is_refused_in_one_line(run, backend, message):
    result = run("bench", "engine", "--backend", backend, *QUICK)
    assert result.exit_code == 3
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_backend_that_is_wrong_is_seen(run_json, monkeypatch):
    original = torch_engine.lower_transformer

    def spoil(transformer, precision):
        original(transformer, precision)
        transformer.norm_out.eps = 10.0  # no weight, so loading leaves it

    monkeypatch.setattr(torch_engine, "lower_transformer", spoil)
    record = run_json("bench", "engine", "--backend", "onnxruntime,torch", "--members", 1, *QUICK)
    assert record["backends"]["torch"]["states apart, share"] > 1e-3


def test_backends_take_turns():
    calls = []
    ways = {name: {"step": lambda name=name: calls.append(name)} for name in "ab"}
    taken = bench_stages.time_in_turns(ways, 2)
    assert calls == list("ababab")
    assert [len(taken[name]["step"]) for name in "ab"] == [2, 2]


def test_large_steps_go_in_forwards_that_fit():
    sizes = []

    class Counting(ToyRolloutEngine):
        def step(self, rows):
            sizes.append(len(rows))
            return super().step(rows)

    class Stages(bench_stages.Stages):
        def __init__(self, engine, rows):
            self._engine, self._rows = engine, rows

    engine = Counting()
    largest = engine.contract.buckets[-1]
    conditioning = engine.condition(
        np.zeros((4, *engine.contract.latent_shape), np.float32), np.zeros((12, 3), np.float32)
    )
    start = engine.initial_latents(conditioning, np.zeros(engine.noise_shape(), np.float32))
    row = StepRow(start, 1.0, 0.5, conditioning)
    assert len(Stages(engine, [row] * (largest + 1))._step(largest + 1)) == largest + 1
    assert sizes == [largest, 1]


def test_stages_are_held_against_what_this_machine_can_do(run_json):
    record = run_json("bench", "roofline", *QUICK)
    assert all(value > 0 for value in record["ceilings, per s"].values())
    stages = record["stages"]
    assert set(stages) >= {"encode", "condition", "step of 1", "step of 16", "decode all frames"}
    for stage in stages.values():
        assert 0 < stage["fraction of the floor"] == pytest.approx(stage["floor, ms"] / stage["taken, ms"], rel=0.05)
    one, most = (stages[f"step of {members}"]["products, GFLOP"] for members in (1, 16))
    assert most == pytest.approx(16 * one, rel=0.01)


def test_a_device_that_is_not_here_is_refused_in_one_line(run):
    result = run("bench", "roofline", "--device", "cuda:7", *QUICK)
    assert result.exit_code == 3
    assert "'cuda:7' was asked for" in result.stderr
