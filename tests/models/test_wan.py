"""The transformer against a reference written token by token, and its names and sizes against the checkpoints'."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foreframe_models.wan import WanConfig, WanTransformer, rotary_table, rotate, timestep_embedding

SMALL = WanConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    ffn_dim=40,
    freq_dim=12,
    text_dim=10,
    in_channels=3,
    out_channels=5,
    patch_size=(1, 2, 2),
)
GRID = (2, 3, 4)

ATTENTION = {
    "to_q.weight": (32, 32),
    "to_q.bias": (32,),
    "to_k.weight": (32, 32),
    "to_k.bias": (32,),
    "to_v.weight": (32, 32),
    "to_v.bias": (32,),
    "to_out.0.weight": (32, 32),
    "to_out.0.bias": (32,),
    "norm_q.weight": (32,),
    "norm_k.weight": (32,),
}
BLOCK = {
    **{f"attn1.{name}": shape for name, shape in ATTENTION.items()},
    **{f"attn2.{name}": shape for name, shape in ATTENTION.items()},
    "norm2.weight": (32,),
    "norm2.bias": (32,),
    "ffn.net.0.proj.weight": (40, 32),
    "ffn.net.0.proj.bias": (40,),
    "ffn.net.2.weight": (32, 40),
    "ffn.net.2.bias": (32,),
    "scale_shift_table": (1, 6, 32),
}
CHECKPOINT_SHAPES = {
    "patch_embedding.weight": (32, 3, 1, 2, 2),
    "patch_embedding.bias": (32,),
    "condition_embedder.time_embedder.linear_1.weight": (32, 12),
    "condition_embedder.time_embedder.linear_1.bias": (32,),
    "condition_embedder.time_embedder.linear_2.weight": (32, 32),
    "condition_embedder.time_embedder.linear_2.bias": (32,),
    "condition_embedder.time_proj.weight": (192, 32),
    "condition_embedder.time_proj.bias": (192,),
    "condition_embedder.text_embedder.linear_1.weight": (32, 10),
    "condition_embedder.text_embedder.linear_1.bias": (32,),
    "condition_embedder.text_embedder.linear_2.weight": (32, 32),
    "condition_embedder.text_embedder.linear_2.bias": (32,),
    "proj_out.weight": (20, 32),
    "proj_out.bias": (20,),
    "scale_shift_table": (1, 2, 32),
    **{f"blocks.{index}.{name}": shape for index in range(2) for name, shape in BLOCK.items()},
}


def slow_rotate(vector: Tensor, position: tuple[int, int, int]) -> Tensor:
    """Rotate one token's one head, pair by pair."""
    dim = len(vector)
    spatial = 2 * (dim // 6)
    turned, pair = vector.clone(), 0
    for place, axis_dim in zip(position, (dim - 2 * spatial, spatial, spatial), strict=True):
        for index in range(axis_dim // 2):
            angle = place / 10_000.0 ** (2 * index / axis_dim)
            a, b = vector[2 * pair].item(), vector[2 * pair + 1].item()
            turned[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
            pair += 1
    return turned


def slow_embedding(timestep: float, dim: int) -> Tensor:
    angles = [timestep * math.exp(-math.log(10_000.0) * index / (dim // 2)) for index in range(dim // 2)]
    return torch.tensor([math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles])


class SlowTransformer:
    """The same function from the same weights, one clip at a time, every token with its own modulation."""

    def __init__(self, model: WanTransformer) -> None:
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def attention(self, x: Tensor, source: Tensor, name: str, positions: list[tuple[int, int, int]] | None) -> Tensor:
        query, key, value = (
            self.linear(t, f"{name}.to_{part}") for t, part in ((x, "q"), (source, "k"), (source, "v"))
        )
        query = rms_norm(query) * self.weights[f"{name}.norm_q.weight"]
        key = rms_norm(key) * self.weights[f"{name}.norm_k.weight"]
        heads = []
        for head in range(SMALL.num_attention_heads):
            part = slice(head * SMALL.attention_head_dim, (head + 1) * SMALL.attention_head_dim)
            q, k = query[:, part], key[:, part]
            if positions is not None:
                q = torch.stack([slow_rotate(row, place) for row, place in zip(q, positions, strict=True)])
                k = torch.stack([slow_rotate(row, place) for row, place in zip(k, positions, strict=True)])
            weights = torch.softmax(q @ k.T / math.sqrt(SMALL.attention_head_dim), dim=-1)
            heads.append(weights @ value[:, part])
        return self.linear(torch.cat(heads, dim=-1), f"{name}.to_out.0")

    def block(
        self, x: Tensor, name: str, terms: Tensor, prompt: Tensor, positions: list[tuple[int, int, int]]
    ) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (terms + self.weights[f"{name}.scale_shift_table"]).unbind(
            1
        )
        mixed = layer_norm(x) * (1 + scale) + shift
        x = x + gate * self.attention(mixed, mixed, f"{name}.attn1", positions)
        normed = layer_norm(x) * self.weights[f"{name}.norm2.weight"] + self.weights[f"{name}.norm2.bias"]
        x = x + self.attention(normed, prompt, f"{name}.attn2", None)
        hidden = gelu(self.linear(layer_norm(x) * (1 + ffn_scale) + ffn_shift, f"{name}.ffn.net.0.proj"))
        return x + ffn_gate * self.linear(hidden, f"{name}.ffn.net.2")

    def __call__(self, latents: Tensor, timestep: Tensor, prompt: Tensor, extra: list[Tensor], bias: Tensor) -> Tensor:
        frames, rows, columns = latents.shape[1], latents.shape[2] // 2, latents.shape[3] // 2
        positions = list(product(range(frames), range(rows), range(columns)))
        kernel = self.weights["patch_embedding.weight"]
        cells = [latents[:, f : f + 1, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] for f, r, c in positions]
        x = torch.stack([(kernel * cell).sum((1, 2, 3, 4)) for cell in cells]) + self.weights["patch_embedding.bias"]
        x = x + bias.flatten(0, 1)
        frame_of = [place[0] for place in positions]
        embedding = torch.stack([slow_embedding(timestep[f].item(), SMALL.freq_dim) for f in frame_of]).double()
        name = "condition_embedder.time_embedder.linear"
        embedded = self.linear(functional.silu(self.linear(embedding, f"{name}_1")), f"{name}_2")
        terms = self.linear(functional.silu(embedded), "condition_embedder.time_proj").view(len(x), 6, -1)
        name = "condition_embedder.text_embedder.linear"
        source = self.linear(gelu(self.linear(prompt, f"{name}_1")), f"{name}_2")
        for index in range(SMALL.num_layers):
            x = self.block(x, f"blocks.{index}", terms + extra[index][frame_of], source, positions)
        shift, scale = (self.weights["scale_shift_table"] + embedded[:, None]).unbind(1)
        out = self.linear(layer_norm(x) * (1 + scale) + shift, "proj_out")
        result = torch.zeros(SMALL.out_channels, frames, 2 * rows, 2 * columns, dtype=torch.float64)
        for row, (f, r, c) in zip(out, positions, strict=True):
            result[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = row.view(2, 2, -1).permute(2, 0, 1)
        return result


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.fixture
def model() -> WanTransformer:
    torch.manual_seed(0)
    return WanTransformer(SMALL).eval()


def test_rotation_splits_a_head_between_time_rows_and_columns() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, math.prod(GRID), 2, 16)
    turned = rotate(x, rotary_table(SMALL, GRID))
    for token, place in enumerate(product(*(range(length) for length in GRID))):
        for head in range(2):
            torch.testing.assert_close(turned[0, token, head], slow_rotate(x[0, token, head], place))


def test_timesteps_become_cosines_then_sines() -> None:
    for timestep in (0.0, 1.0, 437.5, 1000.0):
        expected = slow_embedding(timestep, 12)
        torch.testing.assert_close(timestep_embedding(torch.tensor(timestep), 12), expected, atol=1e-4, rtol=0)
    assert timestep_embedding(torch.tensor(0.0), 4).tolist() == [1.0, 1.0, 0.0, 0.0]


@torch.no_grad()
def test_the_transformer_equals_the_slow_reference(model: WanTransformer) -> None:
    latents, prompt = torch.randn(2, 3, 2, 6, 8), torch.randn(1, 4, 10)
    timestep = torch.tensor([[0.0, 900.0], [0.0, 50.0]])
    extra = [0.3 * torch.randn(2, 2, 6, 32) for _ in range(2)]
    bias = 0.3 * torch.randn(2, 2, 12, 32)
    fast = model(latents, timestep, prompt, frame_modulation=extra, token_bias=bias)
    slow = SlowTransformer(model)
    for clip in range(2):
        modulation = [terms[clip].double() for terms in extra]
        expected = slow(latents[clip].double(), timestep[clip], prompt[0].double(), modulation, bias[clip].double())
        torch.testing.assert_close(fast[clip].double(), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_reference_notices_a_wrong_term(model: WanTransformer) -> None:
    latents, prompt, timestep = torch.randn(1, 3, 2, 6, 8), torch.randn(1, 4, 10), torch.tensor([[0.0, 900.0]])
    none, bias = [torch.zeros(1, 2, 6, 32)] * 2, torch.zeros(1, 2, 12, 32)
    slow = SlowTransformer(model)
    slow.weights["blocks.1.scale_shift_table"] = slow.weights["blocks.1.scale_shift_table"].roll(1, dims=1)
    expected = slow(latents[0].double(), timestep[0], prompt[0].double(), [terms[0] for terms in none], bias[0])
    fast = model(latents, timestep, prompt, frame_modulation=none, token_bias=bias)
    assert (fast[0] - expected).abs().max() > 1e-2


def test_names_and_shapes_are_the_checkpoints(model: WanTransformer) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == CHECKPOINT_SHAPES


def test_the_default_is_the_5b() -> None:
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in WanTransformer(WanConfig()).state_dict().values()]
    assert len(shapes) == 825
    assert sum(shape.numel() for shape in shapes) == 4_999_787_712
