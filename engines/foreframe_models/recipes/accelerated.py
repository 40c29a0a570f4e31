"""A training run under `accelerate`: device, precision, accumulation, processes, checkpoints that resume exactly.

Only parameters that require a gradient are trained and saved, so a frozen base costs no disk. What a step sees is a
function of its clips' places in the series alone, so neither processes nor micro-batches change what is trained on.
It knows no model: an objective is any module that turns a batch into a loss.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foreframe_engines.errors import DatasetError, ModelFault
from foreframe_models.training.loop import Progress, append_log, rewind_log

CHECKPOINTS = "checkpoints"
TRAINED_FILE = "trained.safetensors"
PATIENCE = timedelta(days=1)
"""How long processes wait for one another: encoding takes hours, and shards are of different lengths."""

BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How long and how to train; `batch_size` clips a step in micro-batches of `micro_batch_size` a process.

    The rate rises over `warmup_steps` and then stays. Defaults are the paper's (paper.md 1.5).
    """

    steps: int = 23_000
    lr: float = 4e-4
    weight_decay: float = 0.01
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    batch_size: int = 1024
    micro_batch_size: int = 1
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 500
    checkpoint_every: int = 250

    def accumulation(self, num_processes: int) -> int:
        """Count the micro-batches of a step. Raises DatasetError when the batch is no whole number of them."""
        size, micro = self.batch_size, self.micro_batch_size
        if size % (micro * num_processes):
            raise DatasetError(f"a batch of {size} is no multiple of {num_processes} processes x {micro} clips")
        return size // (micro * num_processes)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))


class Clock:
    """Where a run is: steps taken and seconds spent."""

    def __init__(self) -> None:
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take a checkpoint's time."""
        self.step, self.seconds = int(state["step"]), state["seconds"]


def open_accelerator(config: RunConfig) -> Accelerator:
    """Join the processes of a run; bfloat16 autocast where there is a GPU. Raises DatasetError for an odd batch."""
    precision = "bf16" if torch.cuda.is_available() else "no"
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    accelerator.gradient_accumulation_steps = config.accumulation(accelerator.num_processes)
    return accelerator


class AcceleratedTrainer(Generic[BatchT]):
    """Owns an objective's trained parameters, their optimiser and the run's folder; resumes from its checkpoint."""

    def __init__(self, objective: nn.Module, config: RunConfig, folder: Path, accelerator: Accelerator) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.clock = Clock()
        self._trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(self._trained.values(), lr=config.lr, weight_decay=config.weight_decay)
        self._objective, self._optimizer = accelerator.prepare(objective, optimizer)
        accelerator.register_for_checkpointing(self.clock)
        accelerator.register_save_state_pre_hook(self._save_trained)
        accelerator.register_load_state_pre_hook(self._load_trained)
        self._resume()

    def run(
        self, batch: Callable[[range], BatchT], evaluate: Callable[[], dict[str, float]], publish: Callable[[], None]
    ) -> Iterator[Progress]:
        """Train to the end, yielding at every logged step; interrupting loses at most one checkpoint period.

        `batch(places)` reads clips onto the device; `publish()` comes before every checkpoint, so that a run which is
        killed between the two does it again. Only the first process evaluates, yields and publishes. Raises ModelFault
        when the loss is not finite.
        """
        while self.clock.step < self.config.steps:
            started = time.perf_counter()
            loss = self._update(batch)
            self.clock.step += 1
            self.clock.seconds += time.perf_counter() - started
            if self._is_due(self.config.log_every) and self.accelerator.is_main_process:
                yield self._log(loss, evaluate() if self._is_due(self.config.evaluate_every) else {})
            if self._is_due(self.config.checkpoint_every):
                if self.accelerator.is_main_process:
                    publish()
                self._save()

    def _is_due(self, period: int) -> bool:
        return self.clock.step == self.config.steps or self.clock.step % period == 0

    def _update(self, batch: Callable[[range], BatchT]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate(self.clock.step)
        total = torch.zeros((), device=self.accelerator.device)
        for places in self._micro_batches():
            with self.accelerator.accumulate(self._objective):
                loss: Tensor = self._objective(batch(places))
                self.accelerator.backward(loss)
                total += loss.detach()
                self._finish_step()
        return self._settle(total / self.accelerator.gradient_accumulation_steps)

    def _micro_batches(self) -> Iterator[range]:
        """Yield this process's places, one range a micro-batch."""
        config, first = self.config, self.clock.step * self.config.batch_size
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        for micro in range(self.accelerator.gradient_accumulation_steps):
            start = first + (micro * count + index) * config.micro_batch_size
            yield range(start, start + config.micro_batch_size)

    def _finish_step(self) -> None:
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self._trained.values(), self.config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _settle(self, loss: Tensor) -> float:
        value = float(self.accelerator.reduce(loss, "mean"))
        if not math.isfinite(value):
            raise ModelFault(f"the loss of step {self.clock.step + 1} is {value}; {self.folder} keeps its checkpoint")
        return value

    def _log(self, loss: float, metrics: dict[str, float]) -> Progress:
        step, rate = self.clock.step, self.config.rate(self.clock.step - 1)
        progress = Progress(step, self.config.steps, loss, rate, self.clock.seconds, metrics)
        append_log(self.folder, progress)
        return progress

    def _save(self) -> None:
        """Write a checkpoint; it appears whole or not at all, and then the one before goes."""
        folder = self.folder / CHECKPOINTS
        self.accelerator.save_state(str(folder / "partial"))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            before = list(folder.glob("step_*"))
            (folder / "partial").replace(folder / f"step_{self.clock.step:08d}")
            for path in before:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = sorted((self.folder / CHECKPOINTS).glob("step_*"))
        if found:
            self.accelerator.load_state(str(found[-1]))
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder / CHECKPOINTS / "partial", ignore_errors=True)
            rewind_log(self.folder, self.clock.step)
        self.accelerator.wait_for_everyone()

    def _save_trained(self, _models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            tensors = {name: parameter.detach().contiguous() for name, parameter in self._trained.items()}
            save_file(tensors, Path(folder) / TRAINED_FILE)

    @torch.no_grad()
    def _load_trained(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        tensors = load_file(Path(folder) / TRAINED_FILE)
        if differing := sorted(tensors.keys() ^ self._trained.keys()):
            raise DatasetError(f"{folder} was trained by another recipe: {differing[0]} is not in both")
        for name, parameter in self._trained.items():
            parameter.copy_(tensors[name])
