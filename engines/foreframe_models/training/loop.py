"""The training loop every model shares: cosine schedule, EMA, CSV log, checkpoints that resume exactly.

A step's data and noise are functions of (seed, step, rank) alone, so a resumed run equals an uninterrupted one.
Under `torchrun` every process takes its own batch and gradients are averaged; the first one logs and saves.
"""

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, distributed, nn

from foreframe_engines.errors import ModelFault
from foreframe_models.training.data import EpisodeTensors

LOG_FILE = "log.csv"
RECIPE_FILE = "recipe.json"
"""What a run was asked to do, every default written out."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how to train; `lr` peaks after `warmup_steps` and falls on a cosine to a hundredth."""

    steps: int
    lr: float
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those that train together; 0 of 1 when there is one."""

    index: int
    count: int

    @classmethod
    def join(cls) -> "Rank":
        """Join the processes that `torchrun` started, if it did."""
        if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if not distributed.is_initialized():
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process logs, evaluates and saves for all."""
        return self.index == 0

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = nn.utils.parameters_to_vector(gradients)
        distributed.all_reduce(flat)
        nn.utils.vector_to_parameters(flat / self.count, gradients)


def choose_device() -> torch.device:
    """Return this process's GPU, or the processor where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


@dataclass(frozen=True, slots=True)
class Progress:
    """One logged moment of a run."""

    step: int
    steps: int
    loss: float
    lr: float
    seconds: float
    metrics: dict[str, float]


def learning_rate(step: int, config: LoopConfig) -> float:
    """Return the rate at a step: linear warm-up, then a cosine to a hundredth of the peak."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluated moment of a run, as its log holds it."""

    step: int
    seconds: float
    metrics: dict[str, float]


def read_evaluations(folder: Path) -> list[Evaluated]:
    """Read every evaluated moment of a run's log."""
    with (folder / LOG_FILE).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metrics"]]
    return [Evaluated(int(row["step"]), float(row["seconds"]), _read_metrics(row["metrics"])) for row in rows]


def _read_metrics(text: str) -> dict[str, float]:
    return {name: float(number) for name, number in (item.split("=") for item in text.split(" "))}


def append_log(folder: Path, progress: Progress) -> None:
    """Append one line to a run's log, its heading first."""
    path = folder / LOG_FILE
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", "seconds", "loss", "lr", "metrics"])
        written = " ".join(f"{name}={number:.4f}" for name, number in progress.metrics.items())
        row = [progress.step, f"{progress.seconds:.1f}", f"{progress.loss:.6f}", f"{progress.lr:.3e}", written]
        writer.writerow(row)


def rewind_log(folder: Path, step: int) -> None:
    """Drop the lines after a checkpoint's step: an interrupted run left them and the resumed one logs them again."""
    path = folder / LOG_FILE
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.split(b",")[0]) <= step]
        path.write_bytes(b"".join(lines[:1] + kept))


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write one JSON object, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class Trainer(Generic[ModelT]):
    """Owns a model, its moving average and its optimisers, and the run's folder; resumes from the checkpoint there."""

    def __init__(
        self,
        model: ModelT,
        optimizers: Sequence[torch.optim.Optimizer],
        config: LoopConfig,
        folder: Path,
    ) -> None:
        self.model, self.config, self.folder = model, config, folder
        self.ema = deepcopy(model).requires_grad_(requires_grad=False)
        self.step, self.seconds = 0, 0.0
        self.rank = Rank.join()
        self._optimizers = list(optimizers)
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        if self.rank.is_first:
            rewind_log(self.folder, self.step)

    def run(
        self,
        loss: Callable[[ModelT, int, torch.Generator], Tensor | Iterable[Tensor]],
        evaluate: Callable[[ModelT], dict[str, float]],
    ) -> Iterator[Progress]:
        """Train to the end, yielding at every logged step; interrupting loses at most one checkpoint period.

        `loss(model, step, generator)` draws its own batch by step and rank, and may come in parts that add up to it,
        of which one at a time is in memory; `evaluate` sees the averaged model. Processes after the first yield
        nothing. Raises ModelFault when a loss is not finite.
        """
        generator = torch.Generator()
        while self.step < self.config.steps:
            started = time.perf_counter()
            generator.manual_seed((self.config.seed * 1_000_003 + self.step) * self.rank.count + self.rank.index)
            value = self._update(loss(self.model, self.step, generator))
            self.step += 1
            self.seconds += time.perf_counter() - started
            if not self.rank.is_first:
                continue
            is_last = self.step == self.config.steps
            if is_last or self.step % self.config.log_every == 0:
                is_evaluated = is_last or self.step % self.config.evaluate_every == 0
                yield self._log(value, evaluate(self.ema) if is_evaluated else {})
            if is_last or self.step % self.config.checkpoint_every == 0:
                self.save()

    def save(self) -> None:
        """Write a checkpoint; it appears whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def save_facts(self, data: EpisodeTensors, batch_size: int) -> None:
        """Write what the run took into `facts.json`, for the model card."""
        self.save_counts(batch_size, {"episodes": data.num_episodes, "frames": data.num_frames})

    def save_counts(self, batch_size: int, counts: Mapping[str, int]) -> None:
        """Write what the run took, and named counts of its data, into `facts.json`."""
        facts = {
            "steps": self.step,
            "seconds": self.seconds,
            "batch_size": batch_size,
            "processes": self.rank.count,
            **counts,
        }
        write_json(self.folder / "facts.json", facts)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def _update(self, loss: Tensor | Iterable[Tensor]) -> float:
        rate = learning_rate(self.step, self.config)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        value = 0.0
        for part in (loss,) if isinstance(loss, Tensor) else loss:
            part.backward()
            value += part.item()
        if not math.isfinite(value):
            raise ModelFault(f"the loss of step {self.step + 1} is {value}")
        self.rank.average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        if self.rank.is_first:
            self._average()
        return value

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for averaged, current in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, 1.0 - decay)

    def _log(self, loss: float, metrics: dict[str, float]) -> Progress:
        rate = learning_rate(self.step - 1, self.config)
        progress = Progress(self.step, self.config.steps, loss, rate, self.seconds, metrics)
        append_log(self.folder, progress)
        return progress
