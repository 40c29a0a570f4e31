"""The full-size measurement rehearsed on a CPU: tiny sizes, every stage, and what happens when something is missing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
MODULES = ("measure_wan", "wan_bench", "wan_ensemble", "wan_parts", "wan_report", "wan_runtimes", "wan_stages")


@pytest.fixture(scope="module")
def script():
    """The script with the modules beside it, as it is run."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(FOLDER))
    import measure_wan  # noqa: PLC0415 - it is no package

    yield measure_wan
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def bench(script):
    sizes = script.tiny_sizes()
    return script.Bench(torch.device("cpu"), replace(sizes, clips=sizes.clips[:1], rounds=1), compiler=None)


@pytest.fixture(scope="module")
def report(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    script.main(["--tiny", "--device", "cpu", "--out", str(folder)])
    return json.loads((folder / "wan-cpu.json").read_text()), (folder / "wan-cpu.md").read_text()


def found(report, stage: str) -> dict:
    return report[0]["stages"][stage]["found"]


def test_every_stage_is_measured(script, report) -> None:
    stages = report[0]["stages"]
    assert list(stages) == list(script.STAGES)
    assert {stage["status"] for stage in stages.values()} == {"measured"}
    assert all(f"## {name}" in report[1] for name in stages)


def test_a_forward_is_diffusers(report) -> None:
    parity = found(report, "parity")
    assert parity["diffusers against ours, single precision, largest difference"] <= 1e-4
    assert parity["savings off against on, single precision, largest difference"] <= 1e-4
    assert 0 < parity["torch compiled, bf16, from single precision"] < 3e-2


def test_a_step_is_timed_in_every_way_against_diffusers_and_the_floor(report) -> None:
    for ways in found(report, "step").values():
        assert set(ways) == {"torch eager", "torch compiled", "diffusers eager", "diffusers compiled"}
        assert all(0 < way["fraction of the floor"] < 1 for way in ways.values())
        assert ways["diffusers eager"]["times diffusers eager"] == 1


def test_pictures_are_diffusers_and_the_tail_is_less_work(report) -> None:
    for clip in found(report, "pictures").values():
        assert clip["decode from diffusers'"] < 2e-2
        assert clip["operations of the last latent"] < clip["operations of decoding everything"]


def test_ensembles_share_a_batch(report) -> None:
    for draws in found(report, "ensemble").values():
        assert draws["frames are decoded"]
        assert draws["3 members in one batch"] > draws["posterior mean"] > 0


def test_another_runtime_is_compared_before_it_is_timed(report) -> None:
    assert found(report, "runtimes")["ONNX Runtime"]["from torch in single precision"] < 1e-4


def test_the_report_says_what_was_to_be_reached(report) -> None:
    assert "at least 0.75" in report[1]
    assert "at least 1.4" in report[1]


def test_a_wrong_step_is_not_timed(script, bench, monkeypatch) -> None:
    stages = sys.modules["wan_stages"]
    original = stages.their_velocity
    monkeypatch.setattr(stages, "their_velocity", lambda *inputs: original(*inputs) * 1.1)
    ways = next(iter(script.step(bench).values()))
    assert ways["diffusers eager"]["not timed, as far from torch eager as"] == pytest.approx(0.1, abs=0.02)
    assert ways["torch eager"]["times diffusers eager"] is None


def test_a_fault_in_parity_is_seen(script, bench, monkeypatch) -> None:
    stages = sys.modules["wan_stages"]
    original = stages.their_velocity
    monkeypatch.setattr(stages, "their_velocity", lambda *inputs: original(*inputs) + 1e-3)
    assert script.parity(bench)["diffusers against ours, single precision, largest difference"] > 5e-4


def test_without_diffusers_our_own_are_measured(script, bench, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    ways = next(iter(script.step(bench).values()))
    assert ways["torch eager"]["times diffusers eager"] is None
    assert "diffusers is not here" in ways["without diffusers"]
    assert script.parity(bench)["torch eager, bf16, from single precision"] > 0
    assert script.run_stage(script.pictures, bench)["status"].startswith("not measured: diffusers is not here")
    draws = next(iter(script.ensemble(bench).values()))
    assert not draws["frames are decoded"]
    assert draws["posterior mean"] > 0


def test_stages_end_when_the_time_is_up(script, bench) -> None:
    late = replace(bench, limit_s=10.0, clock=lambda: 0.0)
    for stage in (script.step, script.ensemble, script.runtimes):
        assert script.run_stage(stage, late)["status"].startswith("not measured: 10 s were left")


def test_a_stage_that_fails_leaves_the_others(script, bench, tmp_path, monkeypatch) -> None:
    def fail(_: object) -> dict[str, object]:
        raise ValueError("one thing\nand another")

    monkeypatch.setattr(script, "STAGES", {"fail": fail, "roofline": script.roofline})
    report = script.measure(bench, ["fail", "roofline"], tmp_path / "wan-cpu.json")
    assert [stage["status"] for stage in report["stages"].values()] == ["failed: ValueError: one thing", "measured"]


def test_stages_that_are_not_run_again_keep_what_was_found(script, bench, tmp_path) -> None:
    path = tmp_path / "wan-cpu.json"
    first = script.measure(bench, ["roofline"], path)
    second = script.measure(replace(bench, limit_s=0.0), ["step"], path)
    assert list(second["stages"]) == ["roofline", "step"]
    assert second["stages"]["roofline"] == first["stages"]["roofline"]


def test_a_stage_that_is_not_there_is_refused(script, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        script.main(["--tiny", "--out", str(tmp_path), "--stages", "step,stop"])
    assert "there is no stage 'stop'" in capsys.readouterr().err


def test_the_5b_is_what_is_measured(script) -> None:
    sizes = script.Sizes()
    assert [sizes.tokens(clip) for clip in sizes.clips] == [1536, 5120]
    assert sizes.members == 20
    assert [sizes.config(clip).state_rows for clip in sizes.clips] == [21, 77]
