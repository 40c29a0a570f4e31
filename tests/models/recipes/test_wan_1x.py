"""The paper's recipe end to end on a tiny pipeline and synthetic shards: it learns, resumes exactly, is an adapter."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foreframe_engines.errors import CheckpointError, DatasetError
from foreframe_models.adapters import activate, attach, read_adapter
from foreframe_models.checkpoints import load_transformer
from foreframe_models.data.latent_clips import ClipPlan
from foreframe_models.prompts import read_prompt
from foreframe_models.recipes.accelerated import RunConfig
from foreframe_models.recipes.flow_matching import FlowConfig, FlowObjective, disturb
from foreframe_models.recipes.held_out import EvaluationConfig
from foreframe_models.recipes.wan_1x import (
    ADAPTER_FILE,
    WanRecipe,
    WanRun,
    WanSources,
    assemble,
    keep_recipe,
    make_trainable,
)
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.state_branch import StateBranchConfig, full_rate_states
from foreframe_models.testing import TOY_VAE, TOY_WAN, write_toy_pipeline, write_toy_shards
from foreframe_models.training.loop import Progress
from foreframe_models.wan import WanConfig

RECIPE = WanRecipe(
    clip=ClipPlan(stride=4),
    prompt_length=8,
    state=StateBranchConfig(hidden=32),
    lora_rank=4,
    lora_alpha=4,
    run=RunConfig(
        steps=60, lr=4e-3, batch_size=8, micro_batch_size=4, log_every=1, evaluate_every=30, checkpoint_every=20
    ),
    evaluation=EvaluationConfig(num_clips=2, steps=2),
)
SHORT = replace(RECIPE, run=replace(RECIPE.run, steps=6, evaluate_every=6, checkpoint_every=2))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> WanSources:
    folder = tmp_path_factory.mktemp("sources")
    write_toy_pipeline(folder / "base")
    write_toy_shards(folder / "data", 200, 150)
    write_toy_shards(folder / "validation", 200, seed=9)
    return WanSources(folder / "base", folder / "data", folder / "validation")


def train(recipe: WanRecipe, sources: WanSources, folder: Path, *, stop_after: int | None = None) -> list[Progress]:
    run = WanRun(recipe, sources, folder)
    for _ in run.cache_latents():
        pass
    moments = []
    for moment in run.train():
        moments.append(moment)
        if moment.step == stop_after:
            break
    return moments


@pytest.fixture(scope="module")
def trained(sources: WanSources, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(RECIPE, sources, folder)


def untrained_model(recipe: WanRecipe, sources: WanSources, folder: Path) -> RolloutModel:
    transformer = load_transformer(sources.base, torch.float32)
    config = recipe.model_config(transformer.config, (4, 4))
    return assemble(config, transformer, read_prompt(folder / "prompt.safetensors", 8, 8))


def test_the_loss_falls_on_what_is_trained_and_on_what_is_held_out(trained: tuple[Path, list[Progress]]) -> None:
    _, moments = trained
    losses = [moment.loss for moment in moments]
    assert fmean(losses[-15:]) < 0.7 * fmean(losses[:15])
    first, last = (moment.metrics for moment in moments if moment.metrics)
    assert last["held_out_loss"] < first["held_out_loss"]
    assert set(last) == {"held_out_loss", "copy_last", "mean_last", "sample_last"}


def test_a_run_leaves_its_recipe_its_facts_and_its_states_statistics(trained: tuple[Path, list[Progress]]) -> None:
    folder, _ = trained
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["run"]["lr"] == 4e-3
    assert recipe["clip"]["offsets"] == [*range(0, 77, 4), 76]
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["steps"], facts["windows"], facts["frames"], facts["hz"]) == (60, 23, 350, 30.0)
    assert len(json.loads((folder / "statistics.json").read_text())["mean"]) == 25


def test_the_adapter_makes_of_a_fresh_base_the_model_that_was_trained(
    trained: tuple[Path, list[Progress]], sources: WanSources
) -> None:
    folder, _ = trained
    model = untrained_model(RECIPE, sources, folder)
    clips = WanRun(RECIPE, sources, folder).cache.open(RECIPE.state_rows, 25)
    batch = disturb(clips.read(range(8)), FlowConfig(), 1, range(8))
    before = FlowObjective(model)(batch).item()
    adapter = read_adapter(folder / ADAPTER_FILE)
    assert (adapter.rank, adapter.alpha, len(adapter.lora)) == (4, 4.0, 20)
    assert adapter.facts.state == RECIPE.state
    attach(model, adapter, "read")
    activate(model, "read")
    trained_tensors = load_file(next((folder / "checkpoints").iterdir()) / "trained.safetensors")
    own = {name.replace(".read.", ".trained."): value for name, value in FlowObjective(model).state_dict().items()}
    for name, tensor in trained_tensors.items():
        assert torch.equal(own[name], tensor), name
    assert FlowObjective(model)(batch).item() < 0.8 * before


def test_the_adapter_names_its_base(trained: tuple[Path, list[Progress]], sources: WanSources, tmp_path: Path) -> None:
    other = replace(sources, base=write_toy_pipeline(tmp_path / "other", seed=5))
    model = untrained_model(RECIPE, other, trained[0])
    with pytest.raises(CheckpointError, match="was made for the base"):
        attach(model, read_adapter(trained[0] / ADAPTER_FILE), "read")


def everything(folder: Path) -> dict[str, object]:
    """Return what a run left: the adapter, optimiser state, and the log without its clock."""
    (checkpoint,) = (folder / "checkpoints").iterdir()
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    tensors = {f"{index}.{name}": value for index, item in state.items() for name, value in item.items()}
    tensors |= load_file(folder / ADAPTER_FILE)
    with (folder / "log.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"log": rows}


@pytest.fixture(scope="module")
def whole(sources: WanSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(SHORT, sources, folder)
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(whole: Path, sources: WanSources, tmp_path: Path) -> None:
    train(SHORT, sources, tmp_path, stop_after=3)
    assert [moment.step for moment in train(SHORT, sources, tmp_path)] == [3, 4, 5, 6]
    assert everything(tmp_path) == everything(whole)


def test_a_changed_batch_would_be_seen(whole: Path, sources: WanSources, tmp_path: Path) -> None:
    train(SHORT, sources, tmp_path, stop_after=3)
    latents = np.load(tmp_path / "latents/latents_0.npy", mmap_mode="r+")
    latents[:] += 0.01
    latents.flush()
    train(SHORT, sources, tmp_path)
    assert everything(tmp_path) != everything(whole)


def test_dropped_states_bring_a_token_of_their_own(sources: WanSources, tmp_path: Path) -> None:
    recipe = replace(SHORT, flow=FlowConfig(state_dropout=0.3), run=replace(SHORT.run, steps=2))
    train(recipe, sources, tmp_path)
    adapter = read_adapter(tmp_path / ADAPTER_FILE)
    assert adapter.branch["no_states_token"].shape == (1, 1, 32)
    assert adapter.facts.state == replace(RECIPE.state, has_no_states_token=True)


def test_only_the_adapter_is_trained(sources: WanSources, whole: Path) -> None:
    model = untrained_model(SHORT, sources, whole)
    make_trainable(model, SHORT)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len([name for name in names if ".lora_" in name]) == 2 * 10 * TOY_WAN.num_layers
    assert all(".lora_" in name or name.startswith("state_branch.modules_to_save") for name in names)
    assert sum("robot_modulation" in name for name in names) == TOY_WAN.num_layers


def test_a_base_in_bfloat16_trains_float32_parameters_under_autocast(
    sources: WanSources, trained: tuple[Path, list[Progress]]
) -> None:
    transformer = load_transformer(sources.base, torch.bfloat16)
    config = RECIPE.model_config(transformer.config, (4, 4))
    model = assemble(config, transformer, read_prompt(trained[0] / "prompt.safetensors", 8, 8))
    make_trainable(model, RECIPE)
    clips = WanRun(RECIPE, sources, trained[0]).cache.open(RECIPE.state_rows, 25)
    with torch.autocast("cpu", torch.bfloat16):
        loss = FlowObjective(model)(disturb(clips.read(range(4)), FlowConfig(), 1, range(4)))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
    assert any(gradient.abs().max() > 0 for gradient in gradients.values() if gradient is not None)


def test_the_defaults_are_the_papers() -> None:
    recipe = WanRecipe()
    config = recipe.model_config(WanConfig(), (32, 32))
    expected = RolloutConfig(num_state_rows=21)
    assert config == expected
    assert (config.context_latents, config.future_latents, recipe.num_latents) == (2, 4, 6)
    assert (recipe.lora_rank, recipe.lora_alpha) == (32, 32)
    run = recipe.run
    assert (run.steps, run.lr, run.weight_decay, run.batch_size) == (23_000, 4e-4, 0.01, 1024)
    with torch.device("meta"):
        model = RolloutModel(config)
        make_trainable(model, recipe)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(size for name, size in trainable.items() if ".lora_" in name) == 80_609_280
    assert sum(size for name, size in trainable.items() if ".lora_" not in name) == pytest.approx(67.9e6, rel=0.01)


def test_states_of_every_frame_go_with_the_branch_for_them() -> None:
    assert replace(RECIPE, state=full_rate_states()).state_rows == tuple(range(77))
    assert RECIPE.state_rows == (*range(0, 77, 4), 76)
    with pytest.raises(DatasetError, match="makes no 6 latent frames"):
        _ = replace(RECIPE, state=StateBranchConfig(strides=(2,))).state_rows


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"lora_rank": 8}, "lora_rank is 4"),
        ({"run": replace(SHORT.run, lr=1e-4)}, r"run\.lr is 0\.004"),
        ({"flow": FlowConfig(shift=1.0)}, r"flow\.shift is 5\.0"),
    ],
)
def test_a_run_is_not_continued_by_another_recipe(whole: Path, change: dict[str, object], what: str) -> None:
    with pytest.raises(DatasetError, match=f"holds a run whose {what}"):
        keep_recipe(replace(SHORT, **change), whole)  # type: ignore[arg-type]
    keep_recipe(replace(SHORT, run=replace(SHORT.run, steps=7, micro_batch_size=2)), whole)


def test_a_run_is_not_continued_on_another_base(whole: Path, sources: WanSources, tmp_path: Path) -> None:
    base = write_toy_pipeline(tmp_path / "base", seed=5)
    shutil.rmtree(base / "vae")
    shutil.copytree(sources.base / "vae", base / "vae")  # with another autoencoder its latents would be refused
    longer = replace(SHORT, run=replace(SHORT.run, steps=7))
    with pytest.raises(CheckpointError, match="was trained on the base"):
        train(longer, replace(sources, base=base), whole)


def test_a_run_without_validation_and_with_a_given_prompt(sources: WanSources, tmp_path: Path) -> None:
    save_file({"prompt": torch.ones(8, 8)}, tmp_path / "given.safetensors")
    chosen = replace(sources, validation=None, prompt=tmp_path / "given.safetensors")
    moments = train(replace(SHORT, run=replace(SHORT.run, steps=1)), chosen, tmp_path / "run")
    assert all(not moment.metrics for moment in moments)
    assert (read_prompt(tmp_path / "run/prompt.safetensors", 8, 8) == 1.0).all()


def test_videos_that_are_no_whole_patches_are_refused(sources: WanSources, tmp_path: Path) -> None:
    recipe = replace(SHORT, clip=ClipPlan())
    write_toy_shards(tmp_path / "data", 100, frame_size=40)
    with pytest.raises(DatasetError, match="videos of 40 x 40 pixels are no whole patches of 16 pixels"):
        WanRun(recipe, replace(sources, data=tmp_path / "data"), tmp_path / "run")


def test_an_autoencoder_of_another_transformer_is_refused(sources: WanSources, tmp_path: Path) -> None:
    base = write_toy_pipeline(
        tmp_path / "base", vae=replace(TOY_VAE, z_dim=2, latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2)
    )
    with pytest.raises(CheckpointError, match="autoencoder has 2 channels, its transformer 4"):
        WanRun(SHORT, replace(sources, base=base), tmp_path / "run")
