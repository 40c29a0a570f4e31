"""Toys of the paper's set-up for tests: a tiny pipeline of random weights on disk, and raw shards of a moving square.

Files and names are the real ones', sizes alone differ. diffusers and transformers are imported when one is made.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from foreframe_models.data.raw_shards import save_raw_shard
from foreframe_models.wan import WanConfig
from foreframe_models.wan_vae import WanVaeConfig, build_vae

TOY_WAN = WanConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=48,
    freq_dim=16,
    text_dim=8,
    in_channels=4,
    out_channels=4,
)
TOY_VAE = WanVaeConfig(
    base_dim=4,
    decoder_base_dim=4,
    z_dim=4,
    dim_mult=(1, 1, 1),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    latents_mean=(0.0,) * 4,
    latents_std=(0.5,) * 4,
    scale_factor_spatial=8,
)
TOY_FRAME_SIZE = 32
TOY_NUM_STATES = 25


def write_toy_pipeline(folder: Path, *, seed: int = 0, vae: WanVaeConfig = TOY_VAE) -> Path:
    """Write transformer, autoencoder and text encoder in diffusers' layout; a clip has 2 x 2 tokens a latent frame."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel  # noqa: PLC0415 - takes seconds
    from transformers import UMT5Config, UMT5EncoderModel  # noqa: PLC0415 - takes seconds

    torch.manual_seed(seed)
    sizes = {name: value for name, value in asdict(TOY_WAN).items() if name not in {"rope_theta", "patch_size"}}
    WanTransformer3DModel(**sizes, patch_size=TOY_WAN.patch_size).save_pretrained(folder / "transformer")
    build_vae(vae).save_pretrained(folder / "vae")
    text = UMT5Config(vocab_size=8, d_model=TOY_WAN.text_dim, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    return folder


def write_toy_shards(folder: Path, *lengths: int, seed: int = 0, frame_size: int = TOY_FRAME_SIZE) -> Path:
    """Write one raw shard of each length: a bright square goes where states 0 and 1 say; segments of 120 frames."""
    for index, length in enumerate(lengths):
        states = _circling(np.random.default_rng((seed, index)), length)
        frames = np.full((length, frame_size, frame_size, 3), 40, np.uint8)
        corners = ((frame_size - 8) * (states[:, :2] + 1.0) / 2.0).astype(int)
        for frame, (row, column) in zip(frames, corners, strict=True):
            frame[row : row + 8, column : column + 8] = 220
        save_raw_shard(folder, index, frames, states, (2 * (np.arange(length) // 120) + 1).astype(np.int32))
    return folder


def _circling(rng: np.random.Generator, length: int) -> Float32[np.ndarray, "t d"]:
    angles = rng.uniform(0.0, 6.28) + rng.uniform(0.05, 0.1) * np.arange(length)
    states = np.zeros((length, TOY_NUM_STATES), np.float32)
    states[:, 0], states[:, 1] = np.cos(angles), np.sin(angles)
    return states
