"""A folded prompt reads what attention over all its rows reads, whatever its rows."""

import pytest
import torch
from torch import Tensor

from foreframe_models.folding import ConstantReading, DistinctReading, GatedReading, HalvedReading, fold_prompt
from foreframe_models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(
    num_layers=2,
    num_attention_heads=3,
    attention_head_dim=8,
    ffn_dim=32,
    freq_dim=16,
    text_dim=10,
    in_channels=4,
    out_channels=4,
)
LENGTH = 512


def prompt_of(*counts: int) -> Tensor:
    """Make a prompt whose rows repeat so often, in mixed order; the last kind is zero, as padding is."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randn(len(counts), CONFIG.text_dim, generator=generator)
    kinds[-1] = 0.0
    rows = kinds.repeat_interleave(torch.tensor(counts), dim=0)
    return rows[torch.randperm(len(rows), generator=generator)][None]


@pytest.fixture
def transformer() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 7, CONFIG.width, generator=torch.Generator().manual_seed(1))


def differences(transformer: WanTransformer, prompt: Tensor, tokens: Tensor) -> list[float]:
    """Compare every block's folded reading with its attention over the whole prompt."""
    source = transformer.condition_embedder.embed_text(prompt)
    found = []
    for block, reading in zip(transformer.blocks, fold_prompt(transformer, prompt), strict=True):
        expected = block.attn2(tokens, source, None)
        found.append(((reading(tokens) - expected).abs().max() / expected.std()).item())
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ((LENGTH,), ConstantReading),
        ((1, LENGTH - 1), GatedReading),
        ((200, 312), GatedReading),
        ((1, 1, 1, 1, LENGTH - 4), DistinctReading),
        ((2, 2, 2), DistinctReading),
    ],
)
def test_a_folded_prompt_reads_the_same(
    transformer: WanTransformer, tokens: Tensor, counts: tuple[int, ...], kind: type
) -> None:
    prompt = prompt_of(*counts)
    assert all(isinstance(reading, kind) for reading in fold_prompt(transformer, prompt))
    assert max(differences(transformer, prompt, tokens)) <= 1e-4


@torch.no_grad()
def test_a_wrong_count_would_be_noticed(transformer: WanTransformer, tokens: Tensor) -> None:
    for counts, wrong in (((1, 511), (256, 256)), ((1, 1, 510), (1, 2, 509))):
        source = transformer.condition_embedder.embed_text(prompt_of(*counts))
        expected = transformer.blocks[0].attn2(tokens, source, None)
        folded = fold_prompt(transformer, prompt_of(*wrong))[0]
        assert (folded(tokens) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_two_prompts_share_a_batch_by_halves(transformer: WanTransformer, tokens: Tensor) -> None:
    told, other = (fold_prompt(transformer, prompt_of(*counts))[0] for counts in ((1, 511), (3, 4, 505)))
    both = HalvedReading(told, other)(torch.cat([tokens, tokens]))
    assert torch.equal(both[:2], told(tokens))
    assert torch.equal(both[2:], other(tokens))


@torch.no_grad()
def test_half_precision_reads_nearly_the_same(transformer: WanTransformer, tokens: Tensor) -> None:
    exact = transformer.blocks[0].attn2(tokens, transformer.condition_embedder.embed_text(prompt_of(1, 511)), None)
    folded = fold_prompt(transformer.bfloat16(), prompt_of(1, 511).bfloat16())[0](tokens.bfloat16())
    assert folded.dtype == torch.bfloat16
    assert (folded.float() - exact).square().mean() <= 1e-3 * exact.var()
