"""The token model looks only back, decodes from a cache as it does at once, and its probabilities add up to one."""

import pytest
import torch
from torch import Tensor

from foreframe_models import st_transformer
from foreframe_models.st_transformer import (
    LOGITS_AT_ONCE,
    KeysValues,
    Span,
    StConfig,
    StTransformer,
    cosmos_st_config,
    eve_tabletop_st_config,
    tokens_at_once,
)
from foreframe_models.state_branch import StateBranchConfig
from foreframe_models.training.likelihood import nats_per_token

TOKENS, GRIDS, NUM_STATES, VOCABULARY = 4, 5, 6, 24


@pytest.fixture(params=[(4, 6), (24,)], ids=["two factors", "one factor"])
def model(request, make_token_model) -> StTransformer:
    return make_token_model(factors=request.param)


def draw_clip(seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (batch, GRIDS, TOKENS), generator=generator)
    return ids, torch.randn(batch, GRIDS + 1, NUM_STATES, generator=generator)


def empty_past(model: StTransformer, batch: int) -> list[KeysValues]:
    slot = torch.zeros(batch, TOKENS, 1, model.config.width)
    return [KeysValues(slot, slot) for _ in model.blocks]


@torch.no_grad()
@pytest.mark.parametrize("span", list(Span))
@pytest.mark.parametrize("changed", range(1, GRIDS))
def test_a_later_grid_changes_no_earlier_answer(make_token_model, span: Span, changed: int) -> None:
    model = make_token_model(span=span)
    ids, states = draw_clip()
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    before, after = model(ids, states), model(other, states)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed:], after[:, changed:], atol=1e-4)  # the change is seen at all


@torch.no_grad()
@pytest.mark.parametrize("changed", range(1, GRIDS + 1))
def test_a_later_state_changes_no_earlier_answer(model: StTransformer, changed: int) -> None:
    ids, states = draw_clip()
    other = states.clone()
    other[:, changed] += 1.0
    before, after = model(ids, states), model(ids, other)
    assert torch.equal(before[:, : changed - 1], after[:, : changed - 1])
    assert not torch.allclose(before[:, changed - 1], after[:, changed - 1], atol=1e-4)


@torch.no_grad()
def test_cached_decoding_equals_full_recomputation(model: StTransformer) -> None:
    ids, states = draw_clip()
    whole, past = model(ids, states), empty_past(model, len(ids))
    for grid in range(GRIDS):
        position = torch.full((len(ids),), grid)
        hidden, added = model.advance(ids[:, grid], states[:, grid : grid + 2], position, past)
        assert torch.allclose(hidden, whole[:, grid], atol=1e-4)
        past = [
            KeysValues(*(torch.cat(pair, dim=2) for pair in zip(old, new, strict=True)))
            for old, new in zip(past, added, strict=True)
        ]


@torch.no_grad()
def test_a_forgotten_grid_would_be_noticed(model: StTransformer) -> None:
    ids, states = draw_clip()
    position = torch.full((len(ids),), 1)
    hidden, _ = model.advance(ids[:, 1], states[:, 1:3], position, empty_past(model, len(ids)))
    assert not torch.allclose(hidden, model(ids, states)[:, 1], atol=1e-4)


@torch.no_grad()
def test_every_id_has_its_probability_and_all_add_up_to_one(model: StTransformer) -> None:
    hidden = model(*draw_clip())
    every = model.head.all_log_probabilities(hidden)
    assert every.shape[-1] == VOCABULARY
    assert torch.allclose(every.exp().sum(-1), torch.ones(hidden.shape[:-1]), atol=1e-5)
    for wanted in range(VOCABULARY):
        found = model.head.log_probability(hidden, torch.full(hidden.shape[:-1], wanted))
        assert torch.allclose(found, every[..., wanted], atol=1e-5)


@torch.no_grad()
def test_all_futures_of_two_grids_together_have_probability_one() -> None:
    """The likelihood of a sequence is a product over grids and tokens: summed over every sequence it is 1."""
    torch.manual_seed(0)
    state = StateBranchConfig(num_states=2, raw_states=(), hidden=8)
    model = StTransformer(StConfig(state, 1, 1, 8, tokens=2, factors=(3,))).eval()
    for parameter in model.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape))
    grids = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    first, second = (part.flatten() for part in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    start = torch.tensor([0, 1]).expand(81, 2)
    ids = torch.stack([start, grids[first], grids[second]], dim=1)
    hidden = model(ids[:, :-1], torch.randn(1, 3, 2).expand(81, -1, -1))
    total = model.head.log_probability(hidden, ids[:, 1:]).sum(dim=(1, 2)).exp().sum()
    assert abs(float(total) - 1.0) <= 1e-5


@torch.no_grad()
def test_greedy_ids_are_the_likeliest_factor_by_factor(model: StTransformer) -> None:
    hidden = model(*draw_clip())
    greedy, every = model.head.greedy(hidden), model.head.all_log_probabilities(hidden)
    if len(model.config.factors) == 1:
        assert torch.equal(greedy, every.argmax(-1))
        return
    table = every.unflatten(-1, (6, 4))  # second factor, first factor: an id is first + 4 * second
    assert torch.equal(greedy % 4, table.exp().sum(-2).argmax(-1))
    known = (greedy % 4)[..., None, None].expand(*greedy.shape, 6, 1)
    assert torch.equal(greedy // 4, table.gather(-1, known).squeeze(-1).argmax(-1))


@torch.no_grad()
def test_draws_follow_the_probabilities(model: StTransformer) -> None:
    hidden = model(*draw_clip(batch=1))[:, :1, :1].expand(4000, -1, -1, -1)
    drawn = model.head.sample(hidden, torch.Generator().manual_seed(0)).flatten()
    share = torch.bincount(drawn, minlength=VOCABULARY) / 4000
    expected = model.head.all_log_probabilities(hidden[:1]).exp().flatten()
    assert float((share - expected).abs().max()) < 0.03


def test_both_spans_have_the_same_weights(make_token_model) -> None:
    factorised, full = (make_token_model(span=span) for span in Span)
    shapes = {name: tensor.shape for name, tensor in factorised.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in full.state_dict().items()}


def test_the_papers_configuration_builds_without_memory() -> None:
    config = cosmos_st_config()
    with torch.device("meta"):
        model = StTransformer(config)
    assert (config.num_layers, config.tokens, config.vocabulary) == (24, 1024, 64_000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 167_196_416
    hidden = model(torch.zeros(1, 5, 1024, dtype=torch.int64, device="meta"), torch.zeros(1, 6, 25, device="meta"))
    assert hidden.shape == (1, 5, 1024, 512)


@torch.no_grad()
def test_scores_in_slices_are_those_of_all_tokens_at_once(model: StTransformer, monkeypatch) -> None:
    hidden, target = model(*draw_clip()), draw_clip(1)[0]
    greedy = model.head.greedy(hidden)
    for logits_at_once in (LOGITS_AT_ONCE, 3 * max(model.config.factors), 1):
        monkeypatch.setattr(
            st_transformer, "tokens_at_once", lambda size, most=logits_at_once: tokens_at_once(size, most)
        )
        scores = model.head.score(hidden, target)
        assert torch.equal(scores.greedy, greedy)
        assert torch.allclose(scores.log_probability, model.head.log_probability(hidden, target), atol=1e-6)
        assert torch.allclose(scores.greedy_log_probability, model.head.log_probability(hidden, greedy), atol=1e-6)


@pytest.mark.parametrize("logits_at_once", [LOGITS_AT_ONCE, 60, 1])
def test_the_loss_in_slices_has_the_gradients_of_the_loss_at_once(model: StTransformer, logits_at_once: int) -> None:
    hidden, target = model(*draw_clip()), draw_clip(1)[0]
    expected = torch.autograd.grad(-model.head.log_probability(hidden, target).mean(), hidden, retain_graph=True)[0]
    loss = nats_per_token(model.head, hidden, target, logits_at_once=logits_at_once).mean()
    (found,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    assert float(expected.abs().max()) > 1e-4
    assert torch.allclose(found, expected, atol=1e-7)


def test_the_embedded_configuration_fits_its_size() -> None:
    with torch.device("meta"):
        model = StTransformer(eve_tabletop_st_config())
    assert 2 * sum(tensor.numel() for tensor in model.state_dict().values()) <= 12e6  # bytes of float16


def test_three_factors_are_refused(make_token_model) -> None:
    with pytest.raises(ValueError, match="one or two factors"):
        make_token_model(factors=(2, 3, 4))
