"""Decoding from any frame on gives the frames of a decode of everything, from no more latents than they depend on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foreframe_models.wan_cone import decode_since, decoder_chain
from foreframe_models.wan_vae import (
    WanAutoencoder,
    WanVaeConfig,
    build_vae,
    count_frames,
    latent_of_frame,
    measure_cone,
)

VaeFactory = Callable[..., WanAutoencoder]

SHALLOW = {
    "dim_mult": (1, 2, 1),
    "temperal_downsample": (True, True),
    "patch_size": 1,
    "in_channels": 3,
    "out_channels": 3,
    "scale_factor_spatial": 4,
}
PLAIN = {"dim_mult": (1, 2, 4, 4), "is_residual": False, "patch_size": 1, "scale_factor_spatial": 8}
PLAIN |= {"in_channels": 3, "out_channels": 3}
TOLERANCE = 1e-4


def draw_latents(num_latents: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, num_latents, 4, 3, 2, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{}, {"num_res_blocks": 2}, SHALLOW, PLAIN], ids=["2.2", "deeper", "shallow", "2.1"])
@pytest.mark.parametrize("num_latents", [1, 2, 6])
def test_every_later_part_of_a_clip_is_the_part_of_the_whole(
    make_wan_vae: VaeFactory, sizes: dict[str, object], num_latents: int
) -> None:
    autoencoder, latents = make_wan_vae(**sizes), draw_latents(num_latents, batch=2)
    whole = autoencoder.decode(latents)
    for start in range(count_frames(num_latents)):
        part = autoencoder.decode_span(latents, start, count_frames(num_latents))
        torch.testing.assert_close(part, whole[:, :, start:], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_span_within_a_clip_is_the_span_of_the_whole(make_wan_vae: VaeFactory) -> None:
    autoencoder, latents = make_wan_vae(), draw_latents(5)
    whole = autoencoder.decode(latents)
    for start, stop in ((0, 1), (2, 3), (4, 6), (8, 9), (9, 14), (16, 17)):
        span = autoencoder.decode_span(latents, start, stop)
        torch.testing.assert_close(span, whole[:, :, start:stop], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_tail_is_the_last_latents_frames(make_wan_vae: VaeFactory) -> None:
    autoencoder = make_wan_vae()
    for num_latents, num_frames in ((1, 1), (2, 4), (20, 4)):
        latents = draw_latents(num_latents)
        expected = autoencoder.decode(latents)[:, :, -num_frames:]
        torch.testing.assert_close(autoencoder.decode_tail(latents), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_cone_is_as_small_as_it_can_be(make_wan_vae: VaeFactory) -> None:
    decoder = make_wan_vae(**SHALLOW).vae.decoder
    latents, start = draw_latents(40).transpose(1, 2), 150
    first = decoder_chain(decoder).first_input(start)
    assert 0 < first < latent_of_frame(start)
    part = decode_since(decoder, latents, start)
    before, within = latents.clone(), latents.clone()
    before[:, :, first - 1] += 1.0
    within[:, :, first] += 1.0
    assert torch.equal(decode_since(decoder, before, 0)[:, :, start:], decode_since(decoder, latents, 0)[:, :, start:])
    assert (decode_since(decoder, within, start)[:, :, 0] - part[:, :, 0]).abs().max() > 0


@torch.no_grad()
def test_the_tolerance_sees_one_wrong_frame_in_the_cone(make_wan_vae: VaeFactory) -> None:
    autoencoder, latents = make_wan_vae(), draw_latents(6)
    wrong = latents.clone()
    wrong[:, -2] = latents[:, -3]
    error = (autoencoder.decode_tail(wrong) - autoencoder.decode(latents)[:, :, -4:]).abs().max()
    assert error > 100 * TOLERANCE


@torch.no_grad()
def test_the_full_size_decoder_does_a_third_of_the_work_for_the_last_frames() -> None:
    with torch.device("meta"):
        decoder = build_vae(WanVaeConfig()).decoder
        latents = torch.empty(1, 48, 20, 32, 32)
    last_latent, last_frame = (count_teraflops(decoder, latents, start) for start in (73, 76))
    assert decoder_chain(decoder).starts(76) == [0, 0, 0, 0, 0, 11, 50, 62, 74, 74, 76]
    assert count_teraflops(decoder, latents, 0) == pytest.approx(372.5, abs=0.1)
    assert last_latent == pytest.approx(118.6, abs=0.1)
    assert last_frame == pytest.approx(105.2, abs=0.1)


def count_teraflops(decoder: torch.nn.Module, latents: Tensor, start: int) -> float:
    with FlopCounterMode(display=False) as counter:
        decode_since(decoder, latents, start)
    return counter.get_total_flops() / 1e12


def test_the_tail_of_77_frames_is_the_clips_and_takes_less_than_half_of_its_work(make_wan_vae: VaeFactory) -> None:
    autoencoder, latents = make_wan_vae(), draw_latents(20)
    timing = measure_cone(autoencoder, latents, num_rounds=1)
    assert timing.max_error <= TOLERANCE
    assert min(timing.full_s, timing.at_once_s, timing.tail_s) > 0
    raw, num_frames = latents.transpose(1, 2), count_frames(20)
    whole, tail = (count_teraflops(autoencoder.vae.decoder, raw, start) for start in (0, num_frames - 4))
    assert tail < whole / 2
