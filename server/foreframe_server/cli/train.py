"""`foreframe train`: a frame codec and then the model over what it makes; one process, or several under torchrun."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_server.cli.console import print_json, print_note
from foreframe_server.cli.faults import needs_torch
from foreframe_server.cli.training_progress import watch_training

if TYPE_CHECKING:
    from foreframe_models.training.data import EpisodeTensors
    from foreframe_models.training.loop import LoopConfig, Progress


@dataclass(frozen=True, slots=True)
class Ask:
    """How a recipe is changed; None leaves it as it is. `codec_steps` are the first stage's.

    `own_input` is the final share of ids that the likelihood model draws for itself.
    """

    codec_steps: int | None
    steps: int | None
    batch_size: int | None
    seed: int
    own_input: float = 0.0


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    steps: int
    train: "Callable[[EpisodeTensors, EpisodeTensors], Iterator[Progress]]"


def train_rollout_model(data: Path, validation: Path, out: Path, ask: Ask, *, is_json: bool) -> None:
    """Train autoencoder and rollout model, or go on with those of the folder. Raises DatasetError, or Fault."""
    with needs_torch():
        stages = _rollout_stages(out, ask)
    _train(stages, data, validation, out, is_json=is_json)


def train_likelihood_model(data: Path, validation: Path, out: Path, ask: Ask, *, is_json: bool) -> None:
    """Train tokenizer and likelihood model, or go on with those of the folder. Raises DatasetError, or Fault."""
    with needs_torch():
        stages = _likelihood_stages(out, ask)
    _train(stages, data, validation, out, is_json=is_json)


def _rollout_stages(out: Path, ask: Ask) -> list[_Stage]:
    from foreframe_models.embedded import Run
    from foreframe_models.training.autoencoder import AutoencoderRecipe, train_autoencoder
    from foreframe_models.training.rollout import RolloutRecipe, train_rollout

    codec, model = AutoencoderRecipe(), RolloutRecipe()
    codec = replace(codec, loop=_loop(codec.loop, ask.codec_steps, ask.seed))
    model = replace(model, loop=_loop(model.loop, ask.steps, ask.seed), batch_size=ask.batch_size or model.batch_size)
    return [
        _Stage(
            "autoencoder",
            codec.loop.steps,
            lambda train, held_out: train_autoencoder(codec, train, held_out, out / "autoencoder"),
        ),
        _Stage(
            "rollout",
            model.loop.steps,
            lambda train, held_out: train_rollout(model, Run(out).autoencoder(), train, held_out, out / "rollout"),
        ),
    ]


def _likelihood_stages(out: Path, ask: Ask) -> list[_Stage]:
    from foreframe_models.embedded import Run
    from foreframe_models.training.likelihood import LikelihoodRecipe, train_likelihood
    from foreframe_models.training.tokenizer import TokenizerRecipe, train_tokenizer

    codec, model = TokenizerRecipe(), LikelihoodRecipe(own_input=ask.own_input)
    codec = replace(codec, loop=_loop(codec.loop, ask.codec_steps, ask.seed))
    model = replace(model, loop=_loop(model.loop, ask.steps, ask.seed), batch_size=ask.batch_size or model.batch_size)
    return [
        _Stage(
            "tokenizer",
            codec.loop.steps,
            lambda train, held_out: train_tokenizer(codec, train, held_out, out / "tokenizer"),
        ),
        _Stage(
            "likelihood",
            model.loop.steps,
            lambda train, held_out: train_likelihood(model, Run(out).tokenizer(), train, held_out, out / "likelihood"),
        ),
    ]


def _loop(loop: "LoopConfig", steps: int | None, seed: int) -> "LoopConfig":
    return replace(loop, steps=steps or loop.steps, seed=seed)


def _train(stages: list[_Stage], data: Path, validation: Path, out: Path, *, is_json: bool) -> None:
    import torch

    from foreframe_models.training.data import EpisodeTensors
    from foreframe_models.training.loop import Rank

    torch.set_num_threads(1)
    is_first = Rank.join().is_first
    report: dict[str, object] = {"out": str(out)}
    try:
        sets = EpisodeTensors.load(data), EpisodeTensors.load(validation)
        for stage in stages:
            report[stage.name] = watch_training(stage.train(*sets), stage.name, stage.steps, is_shown=is_first)
            _wait_for_first()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if is_first and is_json:
        print_json(report)
    elif is_first:
        print_note(f"the run lies in {out}; `foreframe export --run {out}` makes a bundle of it")


def _wait_for_first() -> None:
    """Wait until the first process has written what the others read."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
