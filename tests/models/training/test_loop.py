"""The loop: its schedule, exact resumption, what is averaged, and several processes that train as one."""

import csv
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreframe_models.training.data import step_rng
from foreframe_models.training.loop import LoopConfig, Progress, Trainer, learning_rate

CONFIG = LoopConfig(steps=12, lr=0.02, warmup_steps=3, ema_decay=0.9, log_every=2, evaluate_every=4, checkpoint_every=4)


def new_trainer(folder: Path, config: LoopConfig = CONFIG) -> Trainer[nn.Linear]:
    torch.manual_seed(config.seed)
    model = nn.Linear(3, 2)
    return Trainer(model, [torch.optim.AdamW(model.parameters(), lr=config.lr)], config, folder)


def noisy_loss(config: LoopConfig = CONFIG) -> Callable[[nn.Linear, int, torch.Generator], Tensor]:
    """A loss whose data come from (seed, step) and whose noise comes from the loop's generator."""

    def loss(model: nn.Linear, step: int, generator: torch.Generator) -> Tensor:
        x = torch.from_numpy(step_rng(config.seed, step).standard_normal((8, 3), dtype=np.float32))
        noise = 0.1 * torch.randn(8, 2, generator=generator)
        return (model(x) - x[:, :2] - noise).square().mean()

    return loss


def evaluate(model: nn.Linear) -> dict[str, float]:
    return {"weight": model.weight.abs().sum().item()}


def run(folder: Path, config: LoopConfig = CONFIG, *, stop_after: int | None = None) -> Trainer[nn.Linear]:
    """Run to the end, or until a step is logged; the checkpoint of that step itself is then lost."""
    trainer = new_trainer(folder, config)
    for moment in trainer.run(noisy_loss(config), evaluate):
        if moment.step == stop_after:
            break
    return trainer


def everything(folder: Path) -> dict[str, object]:
    """Return what a run left: weights, averages, optimiser state, and the log without its clock."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    tensors = {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in state[part].items()}
    moments = state["optimizers"][0]["state"]
    tensors |= {f"{index}.{name}": value for index, item in moments.items() for name, value in item.items()}
    with (folder / "log.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"log": rows, "step": state["step"]}


def test_the_rate_warms_up_and_ends_at_a_hundredth() -> None:
    config = LoopConfig(steps=110, lr=2.0, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[110] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert learning_rate(500, config) == pytest.approx(0.02)


@pytest.mark.parametrize("stop_after", [2, 6, 8, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=stop_after)
    assert run(tmp_path / "parts").step == 12
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "other", replace(CONFIG, seed=1))
    one, other = everything(tmp_path / "one"), everything(tmp_path / "other")
    assert all(one[name] != other[name] for name in ("model.weight", "ema.weight", "log"))


def test_progress_is_told_at_every_logged_step_and_metrics_when_evaluated(tmp_path: Path) -> None:
    moments: list[Progress] = list(new_trainer(tmp_path).run(noisy_loss(), evaluate))
    assert [moment.step for moment in moments] == [2, 4, 6, 8, 10, 12]
    assert [bool(moment.metrics) for moment in moments] == [False, True, False, True, False, True]
    assert moments[-1].lr == pytest.approx(learning_rate(11, CONFIG))
    assert all(math.isfinite(moment.loss) for moment in moments)


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    run(tmp_path)
    before = everything(tmp_path)
    assert list(new_trainer(tmp_path).run(noisy_loss(), evaluate)) == []
    assert everything(tmp_path) == before


def test_the_moving_average_follows_the_weights_more_slowly_with_age(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, replace(CONFIG, log_every=1, ema_decay=0.2))
    averaged = trainer.ema.weight.clone()
    for step, _ in enumerate(trainer.run(noisy_loss(), evaluate)):
        decay = min(0.2, (1 + step) / (10 + step))
        averaged = decay * averaged + (1 - decay) * trainer.model.weight.detach()
        torch.testing.assert_close(trainer.ema.weight, averaged)
    assert not torch.equal(trainer.ema.weight, trainer.model.weight)
    assert not trainer.ema.weight.requires_grad


TRAINING = """
from pathlib import Path
import torch
from torch import nn
from foreframe_models.training.data import step_rng
from foreframe_models.training.loop import LoopConfig, Trainer


def train(folder, ranks):
    torch.manual_seed(0)
    model, config = nn.Linear(3, 2), LoopConfig(steps=6, lr=0.02, warmup_steps=1, log_every=1)
    trainer = Trainer(model, [torch.optim.AdamW(model.parameters(), lr=config.lr)], config, Path(folder))

    def loss(model, step, generator):
        own = ranks or [trainer.rank.index]
        x = torch.cat([torch.from_numpy(step_rng(0, step, rank).standard_normal((8, 3))).float() for rank in own])
        return (model(x) - x[:, :2]).square().mean()

    moments = list(trainer.run(loss, lambda model: {}))
    return f"{trainer.rank.index} {trainer.rank.count} {len(moments)}"
"""
PROCESS = f"{TRAINING}\nimport sys\ntorch.set_num_threads(1)\nprint(train(sys.argv[1], []))"


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
    }
    command = [sys.executable, "-c", PROCESS, str(folder)]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(num_processes)
    ]
    return [process.communicate(timeout=60)[0].strip() for process in started]


def train_alone(folder: Path, ranks: list[int]) -> Tensor:
    space: dict[str, Callable[[Path, list[int]], str]] = {}
    exec(TRAINING, space)
    assert space["train"](folder, ranks) == "0 1 6"
    return final_weight(folder)


def final_weight(folder: Path) -> Tensor:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]["weight"]


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path: Path) -> None:
    assert train_together(tmp_path / "two", 2) == ["0 2 6", "1 2 0"]
    together, joined = final_weight(tmp_path / "two"), train_alone(tmp_path / "joined", [0, 1])
    torch.testing.assert_close(together, joined, atol=1e-6, rtol=0)
    assert (train_alone(tmp_path / "half", [0]) - joined).abs().max() > 1e-4
