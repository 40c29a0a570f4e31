"""`foreframe train rollout --config wan2.2-1x`: an adapter for a Wan base; one process, or several under accelerate."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreframe_server.cli.console import open_progress, print_json, print_note
from foreframe_server.cli.faults import needs_torch
from foreframe_server.cli.training_progress import watch_training

if TYPE_CHECKING:
    from foreframe_models.recipes.wan_1x import WanRecipe, WanRun


@dataclass(frozen=True, slots=True)
class Sources:
    """What to train on: a base pipeline, raw shards, held-out raw shards, an embedded prompt."""

    base: Path
    data: Path
    validation: Path | None
    prompt: Path | None


@dataclass(frozen=True, slots=True)
class Ask:
    """How the recipe is changed; None leaves it as it is."""

    steps: int | None
    batch_size: int | None
    micro_batch_size: int | None
    state_dropout: float
    seed: int


def train_wan_adapter(sources: Sources, out: Path, ask: Ask, *, is_json: bool) -> None:
    """Cache latents and train, or go on with what the folder holds. Raises EngineError, or Fault."""
    with needs_torch():
        import torch

        from foreframe_models.recipes.wan_1x import ADAPTER_FILE, WanRecipe, WanRun, WanSources
    torch.set_num_threads(1)  # what a GPU leaves to the processor are small steps, which threads only slow down
    recipe = _change(WanRecipe(), ask)
    run = WanRun(recipe, WanSources(sources.base, sources.data, sources.validation, sources.prompt), out)
    try:
        _cache(run)
        last = watch_training(run.train(), "rollout", recipe.run.steps, is_shown=run.is_first)
    finally:
        run.close()
    if run.is_first and is_json:
        print_json({"out": str(out), "adapter": str(out / ADAPTER_FILE), "rollout": last})
    elif run.is_first:
        print_note(f"the adapter lies in {out / ADAPTER_FILE}")


def _change(recipe: "WanRecipe", ask: Ask) -> "WanRecipe":
    run = replace(
        recipe.run,
        steps=ask.steps or recipe.run.steps,
        batch_size=ask.batch_size or recipe.run.batch_size,
        micro_batch_size=ask.micro_batch_size or recipe.run.micro_batch_size,
        seed=ask.seed,
    )
    return replace(recipe, run=run, flow=replace(recipe.flow, state_dropout=ask.state_dropout))


def _cache(run: "WanRun") -> None:
    with open_progress(is_shown=run.is_first) as bar:
        task = bar.add_task("latents", total=run.count_missing(), note="")
        for _ in run.cache_latents():
            bar.advance(task)
