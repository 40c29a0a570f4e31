"""Ids, digits and codes are one thing in three spellings; ids are Cosmos'; reconstruction starts better than grey."""

import pytest
import torch

from foreframe_models.tokenizer import FrameTokenizer, ScalarQuantizer, TokenizerConfig

COSMOS = (8, 8, 8, 5, 5, 5)


def test_the_vocabulary_of_cosmos_levels() -> None:
    assert TokenizerConfig(COSMOS).vocabulary == 64_000


def test_the_first_level_varies_fastest() -> None:
    quantizer = ScalarQuantizer(COSMOS)
    assert quantizer.bases.tolist() == [1, 8, 64, 512, 2560, 12800]
    lowest = torch.full((6,), -10.0)
    assert quantizer.ids(lowest).item() == 0
    for channel, base in enumerate((1, 8, 64, 512, 2560, 12800)):
        highest = lowest.clone()
        highest[channel] = 10.0
        assert quantizer.ids(highest).item() == (COSMOS[channel] - 1) * base
    assert quantizer.ids(-lowest).item() == 63_999


def test_ids_and_codes_are_inverse_for_every_id() -> None:
    quantizer = ScalarQuantizer(COSMOS)
    ids = torch.arange(64_000)
    codes = quantizer.codes(ids)
    assert len(torch.unique(codes, dim=0)) == 64_000
    assert codes.min() == -1.0
    assert codes.max() <= 1.0
    digits = (codes * (quantizer.levels // 2)).round().long() + quantizer.levels // 2
    assert torch.equal((digits * quantizer.bases).sum(-1), ids)


def test_quantising_is_looking_up_the_code_of_the_id() -> None:
    quantizer = ScalarQuantizer(COSMOS)
    latents = 2.0 * torch.randn(5_000, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(quantizer(latents), quantizer.codes(quantizer.ids(latents)), atol=1e-6)


def test_every_level_is_reached() -> None:
    quantizer = ScalarQuantizer((8, 5))
    ramp = torch.linspace(-6.0, 6.0, 1_000)[:, None].expand(-1, 2)
    ids = quantizer.ids(ramp)
    assert torch.unique(ids % 8).tolist() == list(range(8))
    assert torch.unique(ids // 8).tolist() == list(range(5))


def test_gradients_pass_through_the_rounding() -> None:
    latents = torch.zeros(3, 6, requires_grad=True)
    ScalarQuantizer(COSMOS)(latents).sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()


def test_an_untrained_tokenizer_is_a_rounded_pca() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 16)
    frames = (ramp[:, None] * torch.rand(32, 3, 1, 1) + ramp * torch.rand(32, 3, 1, 1)).clamp(-1, 1)
    tokenizer = FrameTokenizer(TokenizerConfig((8, 8, 5), widths=(8, 16, 24), decoder_depth=1))
    tokenizer.start_as_pca(frames)
    with torch.no_grad():
        error = (tokenizer(frames) - frames).square().mean()
    assert error < 0.1 * (frames - frames.mean()).square().mean()


@torch.no_grad()
def test_detokenizing_gives_what_the_forward_pass_gives(tokenizer: FrameTokenizer) -> None:
    frames = torch.rand(3, 3, 16, 16) * 2 - 1
    ids = tokenizer.tokenize(frames)
    assert ids.shape == (3, 4)
    assert torch.allclose(tokenizer.detokenize(ids, 2, 2), tokenizer(frames), atol=1e-5)


@pytest.mark.parametrize("levels", [(4, 3, 2), COSMOS])
def test_a_model_s_ids_stay_in_the_vocabulary(levels: tuple[int, ...]) -> None:
    ids = ScalarQuantizer(levels).ids(50.0 * torch.randn(1_000, len(levels)))
    assert int(ids.min()) >= 0
    assert int(ids.max()) < TokenizerConfig(levels).vocabulary
