"""`foreframe train likelihood --config 1x-cosmos`: a token model on tokenised 1X shards; one process, or torchrun."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_server.cli.console import print_json, print_note
from foreframe_server.cli.faults import needs_torch
from foreframe_server.cli.training_progress import watch_training

if TYPE_CHECKING:
    from foreframe_models.training.likelihood import LikelihoodRecipe


@dataclass(frozen=True, slots=True)
class Ask:
    """How the recipe is changed; None leaves it as it is. `steps` win over `epochs`, `recipe` is a file of one."""

    recipe: Path | None
    epochs: float | None
    steps: int | None
    batch_size: int | None
    micro_batch_size: int | None
    own_input: float
    seed: int


def train_token_model(data: Path, validation: Path | None, out: Path, ask: Ask, *, is_json: bool) -> None:
    """Train, or go on with what the folder holds. Raises DatasetError, BundleError for a recipe, or Fault."""
    with needs_torch():
        import torch

        from foreframe_models.training.loop import Rank, choose_device
        from foreframe_models.training.token_shards import open_data, train_on_shards
    device, rank = choose_device(), Rank.join()
    try:
        recipe = _read(ask.recipe)
        shards = open_data(recipe, data, validation)
        recipe = change_recipe(recipe, ask, len(shards.train), is_half=device.type == "cuda")
        if rank.is_first:
            print_note(f"{len(shards.train)} clips of {len(shards.train.shards)} shards, {recipe.loop.steps} steps")
        moments = train_on_shards(recipe, shards, out, device)
        last = watch_training(moments, "likelihood", recipe.loop.steps, is_shown=rank.is_first)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if rank.is_first and is_json:
        print_json({"out": str(out), "clips": len(shards.train), "steps": recipe.loop.steps, "likelihood": last})
    elif rank.is_first:
        print_note(f"the model lies in {out}; `foreframe convert st-transformer {out}` makes a bundle of it")


def _read(path: Path | None) -> "LikelihoodRecipe":
    from foreframe_models.config_json import read_config
    from foreframe_models.training.likelihood import LikelihoodRecipe
    from foreframe_models.training.token_shards import cosmos_recipe

    if path is None:
        return cosmos_recipe()
    return read_config(LikelihoodRecipe, path.read_text(encoding="utf-8"), str(path))


def change_recipe(recipe: "LikelihoodRecipe", ask: Ask, num_clips: int, *, is_half: bool) -> "LikelihoodRecipe":
    """Change a recipe as asked and set what the machine decides; one from a file keeps its steps unless asked."""
    from foreframe_models.training.token_shards import EPOCHS, num_steps

    batch_size, steps = ask.batch_size or recipe.batch_size, ask.steps
    if steps is None and (ask.epochs is not None or ask.recipe is None):
        steps = num_steps(EPOCHS if ask.epochs is None else ask.epochs, num_clips, batch_size)
    return replace(
        recipe,
        loop=replace(recipe.loop, seed=ask.seed, steps=steps or recipe.loop.steps),
        batch_size=batch_size,
        micro_batch=ask.micro_batch_size or recipe.micro_batch,
        own_input=ask.own_input,
        is_half=recipe.is_half or is_half,
    )
