"""`foreframe train rollout`: the autoencoder, then the rollout model; one process, or several under torchrun."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_server.cli.console import open_progress, print_json, print_note
from foreframe_server.cli.faults import needs_torch

if TYPE_CHECKING:
    from foreframe_models.training.autoencoder import AutoencoderRecipe
    from foreframe_models.training.loop import Progress
    from foreframe_models.training.rollout import RolloutRecipe


@dataclass(frozen=True, slots=True)
class Ask:
    """How a recipe is changed; None leaves it as it is."""

    autoencoder_steps: int | None
    steps: int | None
    batch_size: int | None
    seed: int


def train_model(data: Path, validation: Path, out: Path, ask: Ask, *, is_json: bool) -> None:
    """Train both stages, or go on with those of the folder. Raises DatasetError, or Fault without torch."""
    with needs_torch():
        import torch

        from foreframe_models.training.loop import Rank
    torch.set_num_threads(1)
    is_first = Rank.join().is_first
    try:
        last = _train_stages(data, validation, out, ask, is_shown=is_first)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if is_first and is_json:
        print_json({"out": str(out), **last})
    elif is_first:
        print_note(f"the run lies in {out}; `foreframe export --run {out}` makes a bundle of it")


def _train_stages(data: Path, validation: Path, out: Path, ask: Ask, *, is_shown: bool) -> dict[str, object]:
    from foreframe_models.embedded import Run
    from foreframe_models.training.autoencoder import train_autoencoder
    from foreframe_models.training.data import EpisodeTensors
    from foreframe_models.training.rollout import train_rollout

    recipes = _recipes(ask)
    train_set, held_out = EpisodeTensors.load(data), EpisodeTensors.load(validation)
    stage = train_autoencoder(recipes.autoencoder, train_set, held_out, out / "autoencoder")
    first = _watch(stage, "autoencoder", recipes.autoencoder.loop.steps, is_shown=is_shown)
    _wait_for_first()
    stage = train_rollout(recipes.rollout, Run(out).autoencoder(), train_set, held_out, out / "rollout")
    second = _watch(stage, "rollout", recipes.rollout.loop.steps, is_shown=is_shown)
    return {"autoencoder": first, "rollout": second}


@dataclass(frozen=True, slots=True)
class _Recipes:
    autoencoder: "AutoencoderRecipe"
    rollout: "RolloutRecipe"


def _recipes(ask: Ask) -> _Recipes:
    from foreframe_models.training.autoencoder import AutoencoderRecipe
    from foreframe_models.training.rollout import RolloutRecipe

    autoencoder, rollout = AutoencoderRecipe(), RolloutRecipe()
    first = replace(autoencoder.loop, seed=ask.seed, steps=ask.autoencoder_steps or autoencoder.loop.steps)
    second = replace(rollout.loop, seed=ask.seed, steps=ask.steps or rollout.loop.steps)
    batch_size = ask.batch_size or rollout.batch_size
    return _Recipes(replace(autoencoder, loop=first), replace(rollout, loop=second, batch_size=batch_size))


def _watch(stage: "Iterator[Progress]", name: str, steps: int, *, is_shown: bool) -> dict[str, object]:
    """Train to the end; return the last numbers, none when the stage had been finished before."""
    last: dict[str, object] = {}
    with open_progress(is_shown=is_shown) as bar:
        task = bar.add_task(name, total=steps, note="")
        for moment in stage:
            bar.update(task, completed=moment.step, note=f"loss {moment.loss:.4f}")
            if moment.metrics:
                measured = ", ".join(f"{metric} {value:.2f}" for metric, value in moment.metrics.items())
                bar.console.print(f"{name} {moment.step}: {measured} dB", highlight=False)
            last = {"step": moment.step, "loss": moment.loss, "seconds": moment.seconds, **moment.metrics}
        bar.update(task, completed=steps)
    return last


def _wait_for_first() -> None:
    """Wait until the first process has written what the others read."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
