"""Wan's causal video autoencoder: diffusers' `AutoencoderKLWan` with normalised latents, and its weights from a folder.

The first latent is one frame, every later one four. Nothing is kept between calls, so threads may share one.
diffusers is imported when an autoencoder is built.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from foreframe_engines.errors import CheckpointError, ShapeMismatch
from foreframe_engines.strict_json import Json, JsonRecord
from foreframe_models.checkpoint_files import find_tensors, read_json
from foreframe_models.checkpoints import CONFIG_FILE, match_tensors
from foreframe_models.wan_cone import decode_since

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

SUBFOLDER = "vae"
FRAMES_PER_LATENT = 4
WITHOUT_EFFECT = ("clip_output", "dropout")
"""Keys of published configurations that change no output: pictures are always clipped, nothing is dropped here."""

# fmt: off
_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class WanVaeConfig:
    """Sizes of the autoencoder under diffusers' names; the defaults are those of Wan2.2-TI2V-5B.

    `patch_size` 1 stands for none; `latents_mean` and `latents_std` hold one number a latent channel.
    """

    base_dim: int = 160
    decoder_base_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD
    is_residual: bool = True
    in_channels: int = 12
    out_channels: int = 12
    patch_size: int = 2
    scale_factor_temporal: int = FRAMES_PER_LATENT
    scale_factor_spatial: int = 16


class WanAutoencoder(nn.Module):
    """Pictures `b 3 t h w` in -1..1 to normalised latents `b n c y x` and back, t = 1 + 4 (n - 1).

    Computes in its weights' type; takes and returns float32.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, vae: "AutoencoderKLWan") -> None:
        """Wrap diffusers' autoencoder. Raises BundleError when its configuration is not supported."""
        super().__init__()
        self.config = read_vae_config(dict(vae.config), type(vae).__name__)
        self.vae = vae
        self._place_scale(torch.device("cpu"))  # also where the weights have no storage yet

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.vae.parameters()).dtype

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode into the posterior's mean, normalised. Raises ShapeMismatch for a clip of other sizes."""
        self._require_fit(pictures)
        patches = _fold(pictures.to(self.dtype), self.config.patch_size)
        num_later = patches.shape[2] // FRAMES_PER_LATENT
        cache = _empty_cache(self.vae.encoder)
        chunks = [
            self.vae.encoder(chunk, feat_cache=cache, feat_idx=[0])
            for chunk in torch.split(patches, [1] + [FRAMES_PER_LATENT] * num_later, 2)
        ]
        raw = self.vae.quant_conv(torch.cat(chunks, 2))[:, : self.config.z_dim].transpose(1, 2)
        return (raw.float() - self.latents_mean) / self.latents_std

    def decode(self, latents: Tensor) -> Tensor:
        """Decode one latent after the other, in little memory. Raises ShapeMismatch for another number of channels."""
        raw, cache = self._raw(latents), _empty_cache(self.vae.decoder)
        chunks = [
            self.vae.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
            for index, chunk in enumerate(torch.split(raw, 1, 2))
        ]
        return self._pictures(torch.cat(chunks, 2))

    def decode_span(self, latents: Tensor, start: int, stop: int) -> Tensor:
        """Decode the frames from `start` to before `stop` with only what they depend on, all latents at once.

        Equals those frames of `decode` up to rounding. Raises ShapeMismatch when the clip has not these frames.
        """
        num_frames = count_frames(latents.shape[1])
        if not 0 <= start < stop <= num_frames:
            raise ShapeMismatch(f"frames {start} to {stop - 1} are not in a clip of {num_frames}")
        raw = self._raw(latents[:, : latent_of_frame(stop - 1) + 1])
        return self._pictures(decode_since(self.vae.decoder, raw, start)[:, :, : stop - start])

    def decode_tail(self, latents: Tensor) -> Tensor:
        """Decode the last latent's frames only: `b 3 4 h w`, of a single latent `b 3 1 h w`."""
        num_latents = latents.shape[1]
        return self.decode_span(latents, count_frames(num_latents - 1), count_frames(num_latents))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - as torch's
        """Move or cast the weights; the scale moves with them but stays float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_scale(self.latents_mean.device)
        return self

    def _place_scale(self, device: torch.device) -> None:
        for name in ("latents_mean", "latents_std"):
            numbers = torch.tensor(getattr(self.config, name), dtype=torch.float32, device=device)
            self.register_buffer(name, numbers[:, None, None], persistent=False)  # the configuration holds them

    def _raw(self, latents: Tensor) -> Tensor:
        if latents.shape[2] != self.config.z_dim:
            raise ShapeMismatch(f"latents have {latents.shape[2]} channels, expected {self.config.z_dim}")
        raw = latents * self.latents_std + self.latents_mean
        return self.vae.post_quant_conv(raw.transpose(1, 2).to(self.dtype))

    def _pictures(self, patches: Tensor) -> Tensor:
        return _unfold(patches, self.config.patch_size).float().clamp(-1.0, 1.0)

    def _require_fit(self, pictures: Tensor) -> None:
        frames, rows, columns = pictures.shape[2:]
        if frames % FRAMES_PER_LATENT != 1:
            raise ShapeMismatch(f"a clip of {frames} frames, expected 1 + {FRAMES_PER_LATENT} k")
        cell = self.config.scale_factor_spatial
        if rows % cell or columns % cell:
            raise ShapeMismatch(f"pictures of {rows} x {columns} pixels, expected multiples of {cell}")


def count_frames(num_latents: int) -> int:
    """Count the frames of so many latents: 0, 1, 5, 9 and so on."""
    return max(0, 1 + FRAMES_PER_LATENT * (num_latents - 1))


def latent_of_frame(index: int) -> int:
    """Return which latent holds a frame."""
    return (index + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT


def build_vae(config: WanVaeConfig) -> "AutoencoderKLWan":
    """Build diffusers' autoencoder with fresh weights. Raises CheckpointError when sizes contradict one another."""
    # It takes seconds, and a configuration is read without it.
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan  # noqa: PLC0415

    _require_agreement(config, type(config).__name__)
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    try:
        return AutoencoderKLWan(**lists).eval()
    except (ValueError, AssertionError) as error:
        raise CheckpointError(f"{type(config).__name__}: diffusers refuses these sizes: {error}") from error


def load_vae(folder: Path, dtype: torch.dtype | None = None, *, device: torch.device | str = "cpu") -> WanAutoencoder:
    """Load an autoencoder in diffusers' layout, frozen and in evaluation mode.

    folder: of the autoencoder, or of a pipeline that has one. dtype: None keeps the file's. Raises CheckpointError
    naming the file, tensor or key that is wrong; nothing is loaded then.
    """
    folder = vae_folder(folder)
    with torch.device("meta"):
        vae = build_vae(_read_config_file(folder / CONFIG_FILE))
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    stored = match_tensors(find_tensors(folder), shapes, str(folder))
    vae.load_state_dict({name: tensor.read(dtype, device) for name, tensor in stored.items()}, assign=True)
    return WanAutoencoder(vae).eval().requires_grad_(requires_grad=False).to(device)


def vae_folder(folder: Path) -> Path:
    """Return the autoencoder's folder: this one, or its part of a pipeline's folder. Raises CheckpointError."""
    for candidate in (folder / SUBFOLDER, folder):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise CheckpointError(f"{folder} holds neither {CONFIG_FILE} nor {SUBFOLDER}/{CONFIG_FILE}")


def _read_config_file(path: Path) -> WanVaeConfig:
    values = read_json(path)
    if values.get("_class_name") != "AutoencoderKLWan":
        raise CheckpointError(f"{path}: _class_name is {values.get('_class_name')!r}; expected AutoencoderKLWan")
    return read_vae_config(values, str(path))


def read_vae_config(values: Mapping[str, Json], where: str) -> WanVaeConfig:
    """Read diffusers' configuration. Raises BundleError naming the key that is wrong, missing or not supported."""
    stated = {key: value for key, value in values.items() if not key.startswith("_") and key not in WITHOUT_EFFECT}
    if stated.pop("attn_scales", None):
        raise CheckpointError(f"{where}: attn_scales: attention between the encoder's levels is not supported")
    stated["patch_size"] = stated.get("patch_size") or 1
    stated["decoder_base_dim"] = stated.get("decoder_base_dim") or stated.get("base_dim")
    record = JsonRecord(stated, where, [field.name for field in fields(WanVaeConfig)])
    config = WanVaeConfig(
        base_dim=record.count("base_dim"),
        decoder_base_dim=record.count("decoder_base_dim"),
        z_dim=record.count("z_dim"),
        dim_mult=record.counts("dim_mult"),
        num_res_blocks=record.count("num_res_blocks"),
        temperal_downsample=_flags(record, "temperal_downsample"),
        latents_mean=record.numbers("latents_mean"),
        latents_std=record.numbers("latents_std"),
        is_residual=_flag(record.value("is_residual"), record.at("is_residual")),
        in_channels=record.count("in_channels"),
        out_channels=record.count("out_channels"),
        patch_size=record.count("patch_size"),
        scale_factor_temporal=record.count("scale_factor_temporal"),
        scale_factor_spatial=record.count("scale_factor_spatial"),
    )
    _require_agreement(config, where)
    return config


def _flags(record: JsonRecord, key: str) -> tuple[bool, ...]:
    return tuple(_flag(item, record.at(key)) for item in record.items(key))


def _flag(value: Json, where: str) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: expected true or false")
    return value


def _require_agreement(config: WanVaeConfig, where: str) -> None:
    num_halvings, pixels = len(config.dim_mult) - 1, 3 * config.patch_size**2
    found_and_expected = {
        "temperal_downsample: length": (len(config.temperal_downsample), num_halvings),
        "temperal_downsample: number of true": (sum(config.temperal_downsample), 2),
        "latents_mean: length": (len(config.latents_mean), config.z_dim),
        "latents_std: length": (len(config.latents_std), config.z_dim),
        "latents_std: zeros or less": (sum(number <= 0 for number in config.latents_std), 0),
        "in_channels": (config.in_channels, pixels),
        "out_channels": (config.out_channels, pixels),
        "scale_factor_temporal": (config.scale_factor_temporal, FRAMES_PER_LATENT),
        "scale_factor_spatial": (config.scale_factor_spatial, config.patch_size * 2**num_halvings),
    }
    for what, (found, expected) in found_and_expected.items():
        if found != expected:
            raise CheckpointError(f"{where}: {what}: expected {expected}, found {found}")


def _empty_cache(module: nn.Module) -> list[None]:
    return [None] * sum(isinstance(layer, nn.Conv3d) for layer in module.modules())


def _fold(pictures: Tensor, patch: int) -> Tensor:
    """Turn pixels `b c t h w` into channels `b (c pw ph) t h/p w/p`, columns of a patch before its rows."""
    cut = torch.unflatten(torch.unflatten(pictures, 4, (-1, patch)), 3, (-1, patch))
    return cut.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unfold(patches: Tensor, patch: int) -> Tensor:
    """Undo `_fold`."""
    cut = torch.unflatten(patches, 1, (-1, patch, patch))
    return cut.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


@dataclass(frozen=True, slots=True)
class ConeTiming:
    """Median seconds of a decode latent by latent, of one with all latents at once, and of the last latent's frames.

    `max_error` is the largest difference between the last frames of the first and those of the last, in -1..1.
    """

    full_s: float
    at_once_s: float
    tail_s: float
    max_error: float

    @property
    def speed_up(self) -> float:
        """How many times faster the last frames come when only they are decoded."""
        return self.full_s / self.tail_s


@torch.inference_mode()
def measure_cone(autoencoder: WanAutoencoder, latents: Tensor, *, num_rounds: int = 5) -> ConeTiming:
    """Time the three ways to decode latents `b n c y x`, in turns after one round that does not count."""
    num_frames = count_frames(latents.shape[1])
    ways: dict[str, Callable[[], Tensor]] = {
        "full": lambda: autoencoder.decode(latents),
        "at_once": lambda: autoencoder.decode_span(latents, 0, num_frames),
        "tail": lambda: autoencoder.decode_tail(latents),
    }
    tail = ways["tail"]()
    error = (ways["full"]()[:, :, -tail.shape[2] :] - tail).abs().max().item()
    ways["at_once"]()
    rounds = [{name: _seconds(way) for name, way in ways.items()} for _ in range(num_rounds)]
    full_s, at_once_s, tail_s = (median(times[name] for times in rounds) for name in ways)
    return ConeTiming(full_s, at_once_s, tail_s, error)


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work().sum().item()  # waits for a device that computes behind our back
    return time.perf_counter() - start
