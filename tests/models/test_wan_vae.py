"""Wan's autoencoder encodes and decodes as diffusers does, and loads diffusers' folders or says what is wrong."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreframe_engines.errors import BundleError, CheckpointError, ShapeMismatch
from foreframe_models.config_json import read_config
from foreframe_models.wan_vae import WanAutoencoder, WanVaeConfig, build_vae, count_frames, load_vae

VaeFactory = Callable[..., WanAutoencoder]

WEIGHTS = "diffusion_pytorch_model.safetensors"
TENSOR = "decoder.conv_in.weight"


@pytest.fixture
def autoencoder(make_wan_vae: VaeFactory) -> WanAutoencoder:
    return make_wan_vae()


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def folder(autoencoder: WanAutoencoder, tmp_path: Path) -> Path:
    path = tmp_path / "vae"
    autoencoder.vae.save_pretrained(path)
    return path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def scale_of(autoencoder: WanAutoencoder) -> tuple[Tensor, Tensor]:
    config = autoencoder.config
    mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    return mean[:, None, None, None], std[:, None, None, None]


def test_the_full_size_is_the_published_one() -> None:
    with torch.device("meta"):
        vae = build_vae(WanVaeConfig())
    assert sum(parameter.numel() for parameter in vae.parameters()) == 704_688_668
    assert len(vae.state_dict()) == 196


@torch.no_grad()
def test_latents_are_diffusers_posterior_mean_normalised(autoencoder: WanAutoencoder, clip: Tensor) -> None:
    mean, std = scale_of(autoencoder)
    expected = (autoencoder.vae.encode(clip).latent_dist.mode() - mean) / std
    latents = autoencoder.encode(clip)
    assert latents.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(latents, expected.transpose(1, 2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_pictures_are_diffusers_and_not_a_grey_field(autoencoder: WanAutoencoder) -> None:
    mean, std = scale_of(autoencoder)
    latents = torch.randn(2, 6, 4, 3, 2)
    expected = autoencoder.vae.decode(latents.transpose(1, 2) * std + mean).sample
    torch.testing.assert_close(autoencoder.decode(latents), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(autoencoder.decode_span(latents, 0, 21), expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.1
    assert (autoencoder.decode(latents[:, [1, 0, 2, 3, 4, 5]]) - expected).abs().max() > 0.1


@torch.no_grad()
def test_a_clip_begins_the_same_whatever_follows(autoencoder: WanAutoencoder, clip: Tensor) -> None:
    assert torch.equal(autoencoder.encode(clip)[:, :2], autoencoder.encode(clip[:, :, :5]))


@torch.no_grad()
def test_threads_share_one_autoencoder(autoencoder: WanAutoencoder, clip: Tensor) -> None:
    clips = [clip.roll(shift, 4) for shift in range(4)]
    alone = [autoencoder.encode(each) for each in clips]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(torch.no_grad()(autoencoder.encode), clips))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@torch.no_grad()
def test_bfloat16_weights_take_and_return_float32(make_wan_vae: VaeFactory, clip: Tensor) -> None:
    exact, rounded = make_wan_vae(), make_wan_vae().bfloat16()
    latents, pictures = exact.encode(clip), exact.decode_tail(exact.encode(clip))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded.latents_mean, exact.latents_mean)
    assert rounded.encode(clip).dtype == rounded.decode_tail(latents).dtype == torch.float32
    torch.testing.assert_close(rounded.encode(clip), latents, atol=0.1, rtol=0)
    torch.testing.assert_close(rounded.decode_tail(latents), pictures, atol=0.1, rtol=0)


def test_latents_hold_one_frame_and_then_four_each() -> None:
    assert [count_frames(number) for number in (0, 1, 2, 6, 20)] == [0, 1, 5, 21, 77]


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 5, 32, 40), (1, 3, 0, 32, 32)])
def test_a_clip_of_other_sizes_is_refused(autoencoder: WanAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"frames, expected 1|multiples of 16"):
        autoencoder.encode(torch.zeros(shape))


def test_latents_with_other_channels_are_refused(autoencoder: WanAutoencoder) -> None:
    with pytest.raises(ShapeMismatch, match="5 channels, expected 4"):
        autoencoder.decode(torch.zeros(1, 2, 5, 2, 2))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 6)])
def test_frames_that_a_clip_has_not_are_refused(autoencoder: WanAutoencoder, start: int, stop: int) -> None:
    with pytest.raises(ShapeMismatch, match="not in a clip of 5"):
        autoencoder.decode_span(torch.zeros(1, 2, 4, 2, 2), start, stop)


@torch.no_grad()
@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
def test_a_folder_of_diffusers_loads(
    autoencoder: WanAutoencoder, clip: Tensor, tmp_path: Path, shard_size: str
) -> None:
    autoencoder.vae.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_size == "1GB" else 3)
    loaded = load_vae(tmp_path)
    assert loaded.config == autoencoder.config
    assert torch.equal(loaded.encode(clip), autoencoder.encode(clip))
    diffusers = AutoencoderKLWan.from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(loaded.vae.get_parameter(name), value) for name, value in diffusers.named_parameters())


def test_a_pipelines_folder_loads_its_autoencoder_frozen_in_the_type_asked_for(folder: Path) -> None:
    loaded = load_vae(folder.parent, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


def test_the_published_configuration_is_read(folder: Path) -> None:
    edit_config(folder, clip_output=False, _diffusers_version="0.35.0.dev0")
    assert load_vae(folder).config.scale_factor_spatial == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "WanTransformer3DModel"}, "_class_name is 'WanTransformer3DModel'"),
        ({"latents_mean": [0.0] * 3}, "latents_mean: length: expected 4, found 3"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std: zeros or less: expected 0, found 1"),
        ({"scale_factor_spatial": 8}, "scale_factor_spatial: expected 16, found 8"),
        ({"temperal_downsample": [False, False, True]}, "number of true: expected 2, found 1"),
        ({"temperal_downsample": [0, 1, 1]}, "temperal_downsample: expected true or false"),
        ({"attn_scales": [1.0]}, "attn_scales"),
        ({"z_dim": "4"}, "z_dim: expected an integer"),
        ({"gain": 2}, "key 'gain' is unknown"),
        ({"base_dim": 16}, "tensor .* is .*, the model's is"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load_vae(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(TENSOR), f"tensor '{TENSOR}' is missing"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), "tensor 'other' is not part"),
        (lambda tensors: tensors.update({TENSOR: torch.zeros(2)}), rf"tensor '{TENSOR}' is \(2,\), the model's is"),
        (lambda tensors: tensors.update({TENSOR: tensors[TENSOR].int()}), f"tensor '{TENSOR}' is I32"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_vae(folder)


def test_a_pickle_is_refused_by_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin, a pickle"):
        load_vae(folder)


def test_a_file_that_ends_early_is_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_vae(folder)


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config\.json nor vae/config\.json"):
        load_vae(tmp_path)


def test_sizes_that_diffusers_refuses_are_refused(make_wan_vae: VaeFactory) -> None:
    with pytest.raises(CheckpointError, match="diffusers refuses"):
        make_wan_vae(dim_mult=(1, 3, 5, 7), base_dim=7)


def test_a_configuration_is_written_and_read_again(autoencoder: WanAutoencoder) -> None:
    assert read_config(WanVaeConfig, json.dumps(asdict(autoencoder.config)), "model.json") == autoencoder.config
