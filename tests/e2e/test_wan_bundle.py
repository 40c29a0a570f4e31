"""A toy base is trained by the recipe, becomes a bundle, and is served; one bundle for all tests here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch
from safetensors import safe_open

from foreframe_client import Client
from foreframe_engines import Bundle, EnsembleSpec, Query, Sampling, StateStatistics, Strategy
from foreframe_engines.errors import BundleError, CheckpointError, RuntimeUnavailable
from foreframe_engines.rollout import GraphRolloutEngine, open_rollout_engine
from foreframe_engines.sampling import sample
from foreframe_engines.solvers import Solver
from foreframe_models import wan_bundle
from foreframe_models.adapters import activate, attach, save_adapter, start_adapter
from foreframe_models.checkpoints import load_rollout
from foreframe_models.data.latent_clips import ClipPlan
from foreframe_models.prompts import write_prompt
from foreframe_models.recipes.accelerated import RunConfig
from foreframe_models.recipes.flow_matching import FlowConfig
from foreframe_models.recipes.wan_1x import ADAPTER_FILE, WanRecipe, WanRun
from foreframe_models.recipes.wan_1x import WanSources as TrainingSources
from foreframe_models.reference import open_reference_engine
from foreframe_models.rollout import RolloutConfig
from foreframe_models.state_branch import StateBranchConfig, full_rate_states
from foreframe_models.testing import TOY_NUM_STATES, TOY_WAN, write_toy_pipeline, write_toy_shards
from foreframe_models.wan_bundle import WanServing, WanSources, convert_wan
from foreframe_server.cli.overrides import read_private
from foreframe_server.cli.serving import running_server

SERVING = WanServing(height=32, width=32, prompt_length=8, steps=3, solver=Solver.UNIPC, buckets=(1, 2))
NUM_FRAMES = SERVING.context_frames + SERVING.horizon
STATISTICS = StateStatistics(*(np.full(TOY_NUM_STATES, value, np.float32) for value in (0, 1, -3, 3, -2, 2)))


RECIPE = WanRecipe(
    clip=ClipPlan(stride=8),
    prompt_length=8,
    state=StateBranchConfig(hidden=32),
    lora_rank=2,
    lora_alpha=2,
    flow=FlowConfig(state_dropout=0.2),
    run=RunConfig(steps=8, lr=0.05, batch_size=4, micro_batch_size=4),
)


@pytest.fixture(scope="module")
def wan_sources(tmp_path_factory: pytest.TempPathFactory) -> WanSources:
    """Train an adapter for a few steps; the prompt is another than the empty one, so that all of it matters."""
    folder = tmp_path_factory.mktemp("wan")
    base, data = write_toy_pipeline(folder / "base"), write_toy_shards(folder / "data", 160)
    run = WanRun(RECIPE, TrainingSources(base, data), folder / "run")
    losses = [*run.cache_latents(), *run.train()]
    assert losses
    run.close()
    prompt = folder / "prompt.safetensors"
    write_prompt(prompt, torch.randn(1, 8, TOY_WAN.text_dim, generator=torch.Generator().manual_seed(1)))
    return WanSources(base, folder / "run" / ADAPTER_FILE, prompt)


@pytest.fixture(scope="module")
def wan_bundle_folder(wan_sources: WanSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "wan"
    convert_wan(wan_sources, SERVING, STATISTICS, out)
    return out


@pytest.fixture(scope="module")
def engines(wan_bundle_folder: Path) -> tuple[GraphRolloutEngine, GraphRolloutEngine]:
    bundle = Bundle.open(wan_bundle_folder)
    return open_rollout_engine(bundle, num_threads=1), open_reference_engine(wan_bundle_folder)


def make_query(*, guidance: float = 1.0, frame_indices: tuple[int, ...] = (1, 16), size: int = 2) -> Query:
    rng = np.random.default_rng(0)
    return Query(
        model=SERVING.model,
        context=rng.integers(0, 256, (SERVING.context_frames, 32, 32, 3), dtype=np.uint8),
        states=rng.standard_normal((NUM_FRAMES, TOY_NUM_STATES), dtype=np.float32),
        frame_indices=frame_indices,
        sampling=Sampling(Strategy.SAMPLE, 3, 7, guidance),
        ensemble=EnsembleSpec(size),
    )


def test_the_contract_is_the_papers(wan_bundle_folder: Path) -> None:
    contract = Bundle.open(wan_bundle_folder).contract
    assert (contract.context_frames, contract.horizon, contract.fps) == (5, 16, 7.5)
    assert (contract.context_latents, contract.num_latents, contract.frames_per_latent) == (2, 6, 4)
    assert (contract.sampler.solver, contract.sampler.shift, contract.sampler.guidance) == (Solver.UNIPC, 5.0, 1.0)
    assert contract.state.dim == TOY_NUM_STATES


@pytest.mark.parametrize(
    ("guidance", "frame_indices"), [(1.0, tuple(range(1, 17))), (1.0, (13, 16)), (2.5, (16,)), (0.0, (16,))]
)
def test_onnx_runtime_predicts_what_torch_predicts(engines, guidance, frame_indices) -> None:
    query = make_query(guidance=guidance, frame_indices=frame_indices)
    onnx, reference = (sample(engine, query).members.astype(int) for engine in engines)
    assert abs(onnx - reference).max() <= 1
    assert reference.std() > 10


def test_states_guidance_context_and_noise_all_reach_the_frames(engines) -> None:
    query = make_query()
    variants = [
        query,
        replace(query, states=-query.states),
        replace(query, context=255 - query.context),
        replace(query, sampling=replace(query.sampling, guidance=3.0)),
        replace(query, sampling=replace(query.sampling, seed=8)),
        replace(query, sampling=replace(query.sampling, steps=2)),
    ]
    frames = {sample(engines[0], variant).frames.tobytes() for variant in variants}
    assert len(frames) == len(variants)


def test_fifteen_rows_of_future_states_are_sixteen_whose_last_stands_twice(engines) -> None:
    query = make_query(frame_indices=(15, 16))
    short = replace(query, states=query.states[:-1])
    twice = replace(query, states=np.concatenate([query.states[:-1], query.states[-2:-1]]))
    assert sample(engines[0], short).frames.tobytes() == sample(engines[0], twice).frames.tobytes()


def test_what_needs_single_precision_is_stored_so(wan_bundle_folder: Path) -> None:
    with safe_open(wan_bundle_folder / "model.safetensors", "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert kinds["rollout.transformer.blocks.0.attn1.to_q.weight"] == "BF16"
    assert kinds["rollout.transformer.blocks.0.scale_shift_table"] == "F32"
    assert kinds["rollout.state_branch.r_projection.1.weight"] == "F32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 36}, "height 36 is no multiple of the 8 pixels"),
        ({"height": 40}, "5 latents a side are no whole patches of 2"),
        ({"horizon": 15}, "20 frames are not 1 and a multiple of 4"),
        ({"horizon": 12}, None),
        ({"prompt_length": 9}, "expected 'prompt' of 9 rows"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_written(wan_sources, tmp_path, changes, message) -> None:
    serving = replace(SERVING, **changes)
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").touch()
    if message is None:  # the positive control: another length is no mistake
        assert wan_bundle.load_wan(wan_sources, serving, wan_bundle.load_vae(wan_sources.base)).config.num_latents == 5
        return
    with pytest.raises(CheckpointError, match=message):
        convert_wan(wan_sources, serving, STATISTICS, out)
    assert (out / "kept").exists()


def test_a_branch_that_wants_a_row_of_states_for_every_camera_frame_cannot_be_served(wan_sources, tmp_path) -> None:
    config = RolloutConfig(state=full_rate_states(), latent_size=(4, 4), prompt_length=8, num_state_rows=77)
    model = load_rollout(wan_sources.base, config, torch.float32)
    attach(model, start_adapter(model, rank=2, alpha=2), "full")
    activate(model, "full")
    save_adapter(model, tmp_path / "full.safetensors", None)
    with pytest.raises(CheckpointError, match="only branches that take one row a frame"):
        convert_wan(replace(wan_sources, adapter=tmp_path / "full.safetensors"), SERVING, STATISTICS, tmp_path / "out")


def test_it_is_served_and_asked_as_any_model(wan_bundle_folder, engines, monkeypatch) -> None:
    monkeypatch.setattr(structlog, "configure", lambda **_: None)  # this process keeps its logging
    query = make_query(guidance=2.0, frame_indices=(16,), size=4)
    with running_server(read_private(wan_bundle_folder)) as address, Client(address) as client:
        answer = client.predict(
            query.context,
            query.states[:5],
            query.states[5:],
            frame_indices="last",
            ensemble=4,
            seed=7,
            steps=3,
            guidance=2.0,
        )
        model = client.models()[0]
    assert (model.context_frames, model.horizon, model.document["sampler"]["solver"]) == (5, 16, "unipc")
    assert answer.num_members == 4
    np.testing.assert_array_equal(answer.frames, sample(engines[0], query).frames)


def test_statistics_of_another_robot_are_refused(wan_sources, tmp_path) -> None:
    other = StateStatistics(*(np.full(7, value, np.float32) for value in (0, 1, -3, 3, -2, 2)))
    with pytest.raises(CheckpointError, match="of 7 states, the adapter takes 25"):
        convert_wan(wan_sources, SERVING, other, tmp_path / "out")


def test_too_little_memory_is_said_with_numbers(wan_sources, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wan_bundle, "free_host_bytes", lambda: 100_000)
    with pytest.raises(RuntimeUnavailable, match=r"GiB in memory, 0\.0 GiB are free"):
        convert_wan(wan_sources, SERVING, STATISTICS, tmp_path / "out")


def test_a_bundle_whose_weights_changed_is_refused(wan_bundle_folder, tmp_path) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in wan_bundle_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"'model\.safetensors' differs"):
        Bundle.open(folder)
