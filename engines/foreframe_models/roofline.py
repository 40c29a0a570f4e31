"""What a step of a rollout model must compute, and how fast this device can: both ceilings measured in the same run.

Floor = products / the fastest matrix product + attention / the fastest attention + convolutions / the fastest one; no
peak is taken from a data sheet.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from foreframe_models.rollout import RolloutConfig
from foreframe_models.timing import time_in_turns, time_once
from foreframe_models.wan import WanConfig

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_ROUNDS = 5
_WORTH_TIMING_MS = 5.0
_MAX_REPEATS = 200


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of one forward, by the unit that limits them."""

    products: float
    attention: float
    convolutions: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.attention + self.convolutions

    def __add__(self, other: "Work") -> "Work":
        """Put the work of two forwards together."""
        return Work(
            self.products + other.products,
            self.attention + other.attention,
            self.convolutions + other.convolutions,
        )

    def floor_ms(self, ceilings: "Ceilings") -> float:
        """Return the least time that this can take on a device."""
        seconds = self.products / ceilings.products + self.attention / ceilings.attention
        return 1000 * (seconds + self.convolutions / ceilings.convolutions)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best that was measured, per second: operations of products, of attention, of 3-d convolutions; bytes copied.

    measured: every shape that was tried, in the same units.
    """

    products: float
    attention: float
    convolutions: float
    copies: float
    measured: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Shapes:
    """What ceilings are measured with.

    square: side of a square product. tokens: lengths of sequences. rows: of the products' other side.
    """

    model: WanConfig
    tokens: tuple[int, ...]
    square: int = 8192
    copy_bytes: int = 2**30
    picture: int = 128


def reference_work(config: RolloutConfig, batch: int) -> Work:
    """Count one forward as the public implementation does it: every token asks, and attends to every prompt row.

    What the timesteps need is left out: it depends on how often equal ones are embedded.
    """
    wan, tokens = config.transformer, _tokens(config)
    width, layers, rows = wan.width, wan.num_layers, config.prompt_length
    block = 2 * tokens * (6 * width**2 + 2 * width * wan.ffn_dim)
    attention = 4 * tokens * (tokens + rows) * width
    prompt = layers * 2 * 2 * rows * width**2
    return Work(batch * (layers * block + prompt + _ends(config, tokens)), batch * layers * attention)


def own_work(config: RolloutConfig, batch: int) -> Work:
    """Count what is left of it here: a folded prompt, and a last block that answers for the future alone."""
    wan, tokens = config.transformer, _tokens(config)
    depth, width = wan.patch_size[0], wan.width
    future = tokens * (config.future_latents // depth) // (config.num_latents // depth)
    asking = (
        3 * width**2 + width * wan.num_attention_heads + 2 * width * wan.ffn_dim
    )  # q, out, the prompt's q and moves
    block = 2 * tokens * (asking + 2 * width**2)
    last = 2 * (future * asking + tokens * 2 * width**2)
    attention = 4 * tokens * width * (tokens * (wan.num_layers - 1) + future)
    products = (wan.num_layers - 1) * block + last + _ends(config, future)
    return Work(batch * products, batch * attention)


def fastest_product(
    device: torch.device, dtype: torch.dtype, shapes: Shapes, ceilings: "Ceilings"
) -> tuple[Callable[[], object], float]:
    """Return the product that was the fastest when ceilings were measured, to be run again, and its operations.

    It runs for some milliseconds, and waits for its device.
    """
    tasks = _products(device, dtype, shapes)
    run, operations = tasks[max(tasks, key=lambda name: ceilings.measured[name])]
    repeats = _repeats(run, device)
    return partial(time_once, partial(_repeat, run, repeats), device), operations * repeats


def _tokens(config: RolloutConfig) -> int:
    frames, rows, columns = config.token_grid
    return frames * rows * columns


def _ends(config: RolloutConfig, answered: int) -> int:
    wan = config.transformer
    patch = wan.patch_size[0] * wan.patch_size[1] * wan.patch_size[2]
    return 2 * wan.width * patch * (wan.in_channels * _tokens(config) + wan.out_channels * answered)


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype, shapes: Shapes) -> Ceilings:
    """Measure products, attention, convolutions and copies on random data; the fastest of each is its ceiling."""
    products = _measure(_products(device, dtype, shapes), device)
    attention = _measure(_attentions(device, dtype, shapes), device)
    convolutions = _measure(_convolutions(device, dtype, shapes), device)
    copies = _measure({"copy": _copying(device, shapes.copy_bytes)}, device)
    return Ceilings(
        max(products.values()),
        max(attention.values()),
        max(convolutions.values()),
        copies["copy"],
        {**products, **attention, **convolutions, **copies},
    )


_Task = tuple[Callable[[], object], float]
"""What is run, and how much of it that is."""


def _measure(tasks: Mapping[str, _Task], device: torch.device) -> dict[str, float]:
    repeats = {name: _repeats(run, device) for name, (run, _) in tasks.items()}
    ways = {name: partial(_repeat, run, repeats[name]) for name, (run, _) in tasks.items()}
    timings = time_in_turns(ways, device, rounds=_ROUNDS)
    return {name: amount * repeats[name] / (timings[name].median / 1000) for name, (_, amount) in tasks.items()}


def _repeats(run: Callable[[], object], device: torch.device) -> int:
    """Return how often to run what is short, so that starting it and waiting for it hardly count."""
    time_once(run, device)
    return max(1, min(_MAX_REPEATS, round(_WORTH_TIMING_MS / time_once(run, device))))


def _repeat(run: Callable[[], object], count: int) -> None:
    for _ in range(count):
        run()


def _products(device: torch.device, dtype: torch.dtype, shapes: Shapes) -> dict[str, _Task]:
    width, hidden, side = shapes.model.width, shapes.model.ffn_dim, shapes.square
    sizes = {f"product {side} x {side} x {side}": (side, side, side)}
    for rows in shapes.tokens:
        for inputs, outputs in ((width, width), (width, hidden), (hidden, width)):
            sizes[f"product {rows} x {inputs} x {outputs}"] = (rows, inputs, outputs)
    return {name: _multiplying(device, dtype, size) for name, size in sizes.items()}


def _multiplying(device: torch.device, dtype: torch.dtype, size: tuple[int, int, int]) -> _Task:
    rows, inputs, outputs = size
    left, weight = _random((rows, inputs), device, dtype), _random((outputs, inputs), device, dtype)
    return partial(functional.linear, left, weight), 2.0 * rows * inputs * outputs


def _attentions(device: torch.device, dtype: torch.dtype, shapes: Shapes) -> dict[str, _Task]:
    wan = shapes.model
    tasks: dict[str, _Task] = {}
    for tokens in shapes.tokens:
        size = (1, wan.num_attention_heads, tokens, wan.attention_head_dim)
        parts = tuple(_random(size, device, dtype) for _ in range(3))
        for name in _working_backends(parts):
            tasks[f"attention of {tokens}, {name}"] = (partial(_attend, name, parts), 4.0 * tokens**2 * wan.width)
    return tasks


def _working_backends(parts: Sequence[Tensor]) -> Iterator[str]:
    """Name the kernels that take these shapes here; the one that torch chooses always does."""
    yield "chosen"
    for name in _BACKENDS if parts[0].is_cuda else ():
        try:
            _attend(name, parts)
        except RuntimeError:
            continue
        yield name


def _attend(name: str, parts: Sequence[Tensor]) -> Tensor:
    query, key, value = parts
    with _kernel(name):
        return functional.scaled_dot_product_attention(query, key, value)


@contextmanager
def _kernel(name: str) -> Iterator[None]:
    if name == "chosen":
        yield
        return
    with sdpa_kernel(_BACKENDS[name]):
        yield


def _convolutions(device: torch.device, dtype: torch.dtype, shapes: Shapes) -> dict[str, _Task]:
    """Take the size that most of the autoencoder's decoding is spent at, in both layouts."""
    channels, side, frames = min(512, shapes.model.width), shapes.picture, 8
    amount = 2.0 * 27 * channels**2 * frames * side**2
    tasks: dict[str, _Task] = {}
    for name, layout in (("first", torch.contiguous_format), ("last", torch.channels_last_3d)):
        layer = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
        pictures = _random((1, channels, frames, side, side), device, dtype).contiguous(memory_format=layout)
        tasks[f"convolution, channels {name}"] = (partial(layer, pictures), amount)
    return tasks


def _copying(device: torch.device, num_bytes: int) -> _Task:
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return partial(target.copy_, source), 2.0 * num_bytes


def _random(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, device=device, dtype=torch.float32).to(dtype)
