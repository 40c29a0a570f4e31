"""The accelerated loop on a linear map: exact resumption, accumulation, what is saved, processes that train as one."""

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foreframe_engines.errors import DatasetError, ModelFault
from foreframe_models.recipes.accelerated import (
    CHECKPOINTS,
    TRAINED_FILE,
    AcceleratedTrainer,
    RunConfig,
    open_accelerator,
)
from foreframe_models.training.loop import Progress

CONFIG = RunConfig(
    steps=8, lr=0.02, batch_size=8, micro_batch_size=2, log_every=1, evaluate_every=4, checkpoint_every=2
)


class Halves(nn.Module):
    """A frozen base beside a trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 2).requires_grad_(requires_grad=False)
        self.extra = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.base(x) + self.extra(x) - x[:, :2]).square().mean()


def read(places: range) -> Tensor:
    rows = [np.random.default_rng(place).standard_normal(3, dtype=np.float32) for place in places]
    return torch.from_numpy(np.stack(rows))


def new_trainer(folder: Path, config: RunConfig = CONFIG) -> AcceleratedTrainer[Tensor]:
    torch.manual_seed(0)
    return AcceleratedTrainer(Halves(), config, folder, open_accelerator(config))


def run(folder: Path, config: RunConfig = CONFIG, *, stop_after: int | None = None) -> list[Progress]:
    moments = []
    for moment in new_trainer(folder, config).run(read, lambda: {"one": 1.0}, lambda: None):
        moments.append(moment)
        if moment.step == stop_after:
            break
    return moments


def checkpoint(folder: Path) -> Path:
    (found,) = (folder / CHECKPOINTS).iterdir()
    return found


def everything(folder: Path) -> dict[str, object]:
    """Return what a run left: weights, optimiser state, and the log without its clock."""
    tensors = load_file(checkpoint(folder) / TRAINED_FILE)
    state = torch.load(checkpoint(folder) / "optimizer.bin", weights_only=True)["state"]
    tensors |= {f"{index}.{name}": value for index, item in state.items() for name, value in item.items()}
    with (folder / "log.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"log": rows}


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=stop_after)
    assert [moment.step for moment in run(tmp_path / "parts")][-1] == 8
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert len(everything(tmp_path / "whole")["log"]) == 8  # type: ignore[arg-type]


def test_a_resumption_that_forgets_the_optimiser_would_be_seen(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=5)
    path = checkpoint(tmp_path / "parts") / "optimizer.bin"
    state = torch.load(path, weights_only=True)
    for item in state["state"].values():
        item["exp_avg"].zero_()
    torch.save(state, path)
    run(tmp_path / "parts")
    assert everything(tmp_path / "parts") != everything(tmp_path / "whole")


def test_micro_batches_of_any_size_make_the_same_step(tmp_path: Path) -> None:
    for size in (1, 4, 8):
        run(tmp_path / str(size), replace(CONFIG, micro_batch_size=size))
    weights = [load_file(checkpoint(tmp_path / size) / TRAINED_FILE) for size in ("1", "4", "8")]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=0)
    run(tmp_path / "half", replace(CONFIG, batch_size=4))
    half = load_file(checkpoint(tmp_path / "half") / TRAINED_FILE)
    assert (half["extra.weight"] - weights[0]["extra.weight"]).abs().max() > 1e-3


def test_only_what_is_trained_is_saved_and_one_checkpoint_is_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert checkpoint(tmp_path).name == "step_00000008"
    assert load_file(checkpoint(tmp_path) / TRAINED_FILE).keys() == {"extra.weight", "extra.bias"}


def test_progress_is_told_and_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    moments = run(tmp_path)
    assert [moment.step for moment in moments] == list(range(1, 9))
    assert [bool(moment.metrics) for moment in moments] == [step in {4, 8} for step in range(1, 9)]
    assert moments[-1].loss < moments[0].loss
    assert run(tmp_path) == []


def test_what_is_published_is_never_older_than_the_checkpoint(tmp_path: Path) -> None:
    published: list[int] = []
    trainer = new_trainer(tmp_path)
    for _ in trainer.run(read, dict, lambda: published.append(trainer.clock.step)):
        kept = list((tmp_path / CHECKPOINTS).glob("step_*"))
        assert all(published[-1] >= int(path.name.removeprefix("step_")) for path in kept)
    assert published == [2, 4, 6, 8]


def test_a_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    run(tmp_path / "parts", stop_after=5)
    (tmp_path / "parts" / CHECKPOINTS / "partial").mkdir()
    run(tmp_path / "parts")
    run(tmp_path / "whole")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_after=3)
    save_file({"extra.weight": torch.zeros(2, 3)}, checkpoint(tmp_path) / TRAINED_FILE)
    with pytest.raises(DatasetError, match=r"extra\.bias is not in both"):
        new_trainer(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    def poisoned(places: range) -> Tensor:
        return read(places) * (torch.nan if places.start >= 24 else 1.0)

    with pytest.raises(ModelFault, match="the loss of step 4 is nan"):
        list(new_trainer(tmp_path).run(poisoned, dict, lambda: None))
    assert checkpoint(tmp_path).name == "step_00000002"


def test_the_rate_warms_up_and_stays() -> None:
    config = RunConfig(lr=2.0, warmup_steps=4)
    assert [config.rate(step) for step in (0, 1, 3, 4, 20_000)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert RunConfig().rate(0) == RunConfig().rate(22_999) == 4e-4


def test_a_batch_that_processes_cannot_share_evenly_is_refused() -> None:
    assert replace(CONFIG, batch_size=1024, micro_batch_size=4).accumulation(8) == 32
    with pytest.raises(DatasetError, match="a batch of 8 is no multiple of 3 processes x 2 clips"):
        CONFIG.accumulation(3)


TRAINING = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from foreframe_models.recipes.accelerated import AcceleratedTrainer, RunConfig, open_accelerator


class Fit(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return (self.layer(x) - x[:, :2]).square().mean()


def read(places):
    return torch.from_numpy(np.stack([np.random.default_rng(p).standard_normal(3, dtype=np.float32) for p in places]))


def train(folder):
    config = RunConfig(steps=4, lr=0.02, batch_size=8, micro_batch_size=2, log_every=1, checkpoint_every=2)
    accelerator = open_accelerator(config)
    moments = list(AcceleratedTrainer(Fit(), config, Path(folder), accelerator).run(read, dict, lambda: None))
    facts = accelerator.process_index, accelerator.num_processes, accelerator.gradient_accumulation_steps, len(moments)
    accelerator.end_training()
    return " ".join(map(str, facts))
"""
PROCESS = f"{TRAINING}\ntorch.set_num_threads(1)\nprint(train(sys.argv[1]))"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_together(folder: Path, num_processes: int) -> list[str]:
    shared = {
        **os.environ,
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PROCESS, str(folder)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    started = [subprocess.Popen(command, env=shared | rank, stdout=subprocess.PIPE, text=True) for rank in ranks]
    return [process.communicate(timeout=60)[0].strip() for process in started]


def train_alone(folder: Path) -> str:
    space: dict[str, Callable[[Path], str]] = {}
    exec(TRAINING, space)
    return space["train"](folder)


def test_two_processes_share_the_batch_and_train_as_one(tmp_path: Path) -> None:
    assert train_together(tmp_path / "two", 2) == ["0 2 2 4", "1 2 2 0"]
    assert train_alone(tmp_path / "one") == "0 1 4 4"
    two, one = (load_file(checkpoint(tmp_path / name) / TRAINED_FILE) for name in ("two", "one"))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)
