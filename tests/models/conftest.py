"""Small models of the same architecture, and one bundle exported from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foreframe_engines import (
    CameraSpec,
    Contract,
    EnsembleSpec,
    Query,
    Reducer,
    SamplerSpec,
    Sampling,
    StateSchema,
    StateStatistics,
    Strategy,
)
from foreframe_engines.types import TokenSpec
from foreframe_models.autoencoder import AutoencoderConfig, FrameAutoencoder
from foreframe_models.export import Models, TokenModels, export_bundle
from foreframe_models.rollout import RolloutConfig, RolloutModel, Target
from foreframe_models.st_transformer import Span, StConfig, StTransformer
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.tokenizer import FrameTokenizer, TokenizerConfig
from foreframe_models.wan import WanConfig
from foreframe_models.wan_vae import WanAutoencoder, WanVaeConfig, build_vae

torch.set_num_threads(1)

CONTEXT, HORIZON, NUM_STATES, CHANNELS = 2, 4, 6, 8


def small_config(*, is_residual: bool = True, is_mapped: bool = True, target: Target = Target.CLEAN) -> RolloutConfig:
    return RolloutConfig(
        transformer=WanConfig(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=24,
            ffn_dim=64,
            freq_dim=16,
            text_dim=8,
            in_channels=CHANNELS * (2 if is_residual else 1),
            out_channels=CHANNELS,
            patch_size=(2, 1, 1),
        ),
        state=StateBranchConfig(num_states=NUM_STATES, raw_states=(4, 5), hidden=16, strides=(2,), is_mapped=is_mapped),
        context_latents=CONTEXT,
        future_latents=HORIZON,
        latent_size=(2, 2),
        prompt_length=3,
        is_residual=is_residual,
        target=target,
    )


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter, so that zero-initialised paths count too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def small_model(seed: int = 0, **switches: object) -> RolloutModel:
    torch.manual_seed(seed)
    model = RolloutModel(small_config(**switches))  # type: ignore[arg-type]
    randomise(model, seed)
    with torch.no_grad():
        model.prompt.normal_()
    return model.eval()


def small_autoencoder() -> FrameAutoencoder:
    torch.manual_seed(1)
    model = FrameAutoencoder(AutoencoderConfig(channels=CHANNELS, widths=(8, 16, 24), decoder_depth=1))
    model.start_as_pca(torch.rand(64, 3, 16, 16) * 2 - 1)
    randomise(model)
    return model.eval()


def small_wan_vae(**sizes: object) -> WanAutoencoder:
    torch.manual_seed(6)
    smallest: dict[str, object] = {
        "base_dim": 8,
        "decoder_base_dim": 8,
        "z_dim": 4,
        "dim_mult": (1, 1, 1, 1),
        "num_res_blocks": 1,
        "latents_mean": (0.1, -0.2, 0.3, 0.0),
        "latents_std": (0.5, 1.0, 2.0, 1.5),
    }
    config = WanVaeConfig(**(smallest | sizes))  # type: ignore[arg-type]
    return WanAutoencoder(build_vae(config)).eval().requires_grad_(requires_grad=False)


LEVELS = (4, 3, 2)


def small_tokenizer() -> FrameTokenizer:
    torch.manual_seed(2)
    model = FrameTokenizer(TokenizerConfig(LEVELS, widths=(8, 16, 24), decoder_depth=1))
    model.start_as_pca(torch.rand(64, 3, 16, 16) * 2 - 1)
    randomise(model)
    return model.eval()


def small_token_model(
    *, factors: tuple[int, ...] = (4, 6), is_mapped: bool = True, span: Span = Span.FACTORISED
) -> StTransformer:
    torch.manual_seed(3)
    state = StateBranchConfig(num_states=NUM_STATES, raw_states=(4, 5), hidden=16, is_mapped=is_mapped, map_hidden=12)
    model = StTransformer(
        StConfig(state, num_layers=2, num_heads=2, width=16, tokens=4, factors=factors, factor_hidden=8, span=span)
    )
    randomise(model, 4)
    return model.eval()


def small_statistics() -> StateStatistics:
    ones = np.ones(NUM_STATES, np.float32)
    return StateStatistics(0.25 * ones, 0.5 * ones, -3 * ones, 3 * ones, -2 * ones, 2 * ones)


def small_contract() -> Contract:
    statistics = small_statistics()
    state = StateSchema(
        name="six",
        names=tuple(f"s{index}" for index in range(NUM_STATES)),
        units=("rad",) * NUM_STATES,
        mean=statistics.mean,
        std=statistics.std,
        low=statistics.low,
        high=statistics.high,
    )
    return Contract(
        model="small",
        family="small",
        revision="1",
        description="A small model of the same architecture.",
        cameras=(CameraSpec("head", 16, 16),),
        context_frames=CONTEXT,
        horizon=HORIZON,
        fps=15.0,
        state=state,
        sampler=SamplerSpec(4, 16, 1.0, 1, 8),
        latent_shape=(CHANNELS, 2, 2),
        frames_per_latent=1,
        capabilities=("predict", "score", "likelihood"),
        buckets=(1, 2, 4),
        tokens=TokenSpec(LEVELS, (2, 2), 1, 1, max_grids=6, max_candidates=8),
    )


@dataclass(frozen=True, slots=True)
class ExportedBundle:
    """A bundle's folder and the models it was made from, which the export rounded to float16."""

    folder: Path
    models: Models

    @property
    def autoencoder(self) -> FrameAutoencoder:
        return self.models.autoencoder

    @property
    def rollout(self) -> RolloutModel:
        return self.models.rollout

    @property
    def tokens(self) -> TokenModels:
        assert self.models.tokens is not None
        return self.models.tokens


def small_models() -> Models:
    """Make every model of a bundle."""
    rollout, likelihood = small_model(), small_token_model()
    statistics = small_statistics()
    for model in (rollout, likelihood):
        model.states_mean.copy_(torch.from_numpy(statistics.mean))
        model.states_std.copy_(torch.from_numpy(statistics.std))
    return Models(small_autoencoder(), rollout, TokenModels(small_tokenizer(), likelihood))


def export_small(folder: Path) -> None:
    """Write the bundle, and beside it the weights that the models have then."""
    models, extra = small_models(), {"README.md": b"# small\n"}
    export_bundle(folder / "bundle", models, small_contract(), small_statistics(), extra_files=extra)
    torch.save({name: model.state_dict() for name, model in models.by_name().items()}, folder / "weights.pt")


@pytest.fixture(scope="session")
def exported(build_once: Callable[[str, Callable[[Path], None]], Path]) -> ExportedBundle:
    """One bundle for every process that runs the tests, and models with the weights of those that it was made from."""
    folder, models = build_once("exported", export_small), small_models()
    weights = torch.load(folder / "weights.pt", weights_only=True)
    for name, model in models.by_name().items():
        model.load_state_dict(weights[name])
    return ExportedBundle(folder / "bundle", models)


ModelFactory = Callable[..., RolloutModel]


@pytest.fixture
def make_model() -> ModelFactory:
    """Make a small model with every parameter moved away from its start; switches as in `small_config`."""
    return small_model


@pytest.fixture
def make_token_model() -> Callable[..., StTransformer]:
    """Make a small token model with every parameter moved; switches: factors, is_mapped, span."""
    return small_token_model


@pytest.fixture
def tokenizer() -> FrameTokenizer:
    """A small tokenizer with 24 ids, four a frame of 16 pixels."""
    return small_tokenizer()


@pytest.fixture
def make_config() -> Callable[..., RolloutConfig]:
    return small_config


@pytest.fixture
def query() -> Query:
    rng = np.random.default_rng(5)
    return Query(
        model="small",
        context=rng.integers(0, 256, (CONTEXT, 16, 16, 3), dtype=np.uint8),
        states=rng.standard_normal((CONTEXT + HORIZON, NUM_STATES), dtype=np.float32),
        frame_indices=tuple(range(1, HORIZON + 1)),
        sampling=Sampling(Strategy.SAMPLE, 4, seed=3),
        ensemble=EnsembleSpec(3, Reducer.NONE),
    )


@pytest.fixture(scope="session")
def make_wan_vae() -> Callable[..., WanAutoencoder]:
    """Make Wan's autoencoder with random weights, 16 pixels a cell and 4 channels; other sizes as in its config."""
    return small_wan_vae
