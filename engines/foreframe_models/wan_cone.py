"""The decoder of Wan's video autoencoder over a whole clip at once, from any frame on: cone decode.

The decoder is causal, so the last frames depend on few frames of every level, and only those are computed: every
stage knows which of its input frames an output frame needs. Runs the modules of diffusers' decoder; knows no files.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The last frames of a clip, `b c t y x`; the first of them has the index `start` in the clip."""

    frames: Tensor
    start: int

    def since(self, start: int) -> "Tail":
        """Drop the frames before index `start`."""
        return Tail(self.frames[:, :, start - self.start :], start)


class Stage(Protocol):
    """One part of a causal decoder."""

    def first_input(self, start: int) -> int:
        """Return the index of the first input frame that the output frames from `start` on need."""
        ...

    def compute(self, tail: Tail, start: int) -> Tail:
        """Return the output frames from `start` on; `tail` reaches back at least to `first_input(start)`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EachFrame:
    """A function of `b c t y x` that treats every frame by itself."""

    function: Callable[[Tensor], Tensor]

    def first_input(self, start: int) -> int:
        """Need the frame itself."""
        return start

    def compute(self, tail: Tail, start: int) -> Tail:
        """Apply the function to the frames from `start` on."""
        return Tail(self.function(tail.since(start).frames), start)


@dataclass(frozen=True, slots=True, eq=False)
class Convolve:
    """A causal convolution; before the clip's first frame are zeros."""

    layer: nn.Conv3d

    @property
    def reach(self) -> int:
        """Frames that the kernel reaches back."""
        return self.layer.kernel_size[0] - 1

    def first_input(self, start: int) -> int:
        """Need the frames that the kernel reaches back to, as far as the clip has them."""
        return max(0, start - self.reach)

    def compute(self, tail: Tail, start: int) -> Tail:
        """Convolve, with zeros only for what lies before the clip."""
        layer, frames = self.layer, tail.since(self.first_input(start)).frames
        if num_zeros := max(0, self.reach - start):
            frames = functional.pad(frames, (0, 0, 0, 0, num_zeros, 0))
        rows, columns = (size // 2 for size in layer.kernel_size[1:])
        return Tail(functional.conv3d(frames, layer.weight, layer.bias, padding=(0, rows, columns)), start)


@dataclass(frozen=True, slots=True, eq=False)
class DoubleRate:
    """The learnt doubling of the frame rate: frame 0 stays one, frame i becomes frames 2 i - 1 and 2 i.

    Frame 0 passes by; the convolution's clip begins at frame 1.
    """

    convolve: Convolve

    def first_input(self, start: int) -> int:
        """Need the frames that the convolution reaches back to, and frame 0 only for frame 0."""
        source = source_frame(start)
        return 0 if source == 0 else 1 + self.convolve.first_input(source - 1)

    def compute(self, tail: Tail, start: int) -> Tail:
        """Double the frames from the source of `start` on; of a pair whose second frame it is, drop the first."""
        source = source_frame(start)
        if source:
            return Tail(self._double(tail, source), 2 * source - 1).since(start)
        first, later = tail.frames[:, :, :1], tail.since(1)
        has_later = later.frames.shape[2] > 0
        return Tail(torch.cat([first, self._double(later, 1)], 2) if has_later else first, 0)

    def _double(self, tail: Tail, source: int) -> Tensor:
        counted_from_frame_1 = Tail(tail.frames, tail.start - 1)
        pairs = self.convolve.compute(counted_from_frame_1, source - 1).frames
        return torch.stack(pairs.chunk(2, dim=1), dim=3).flatten(2, 3)


@dataclass(frozen=True, slots=True, eq=False)
class RepeatPixels:
    """The shortcut around an upsampling block: every value repeated in space and, where the rate doubles, in time."""

    module: nn.Module
    is_doubling: bool

    def first_input(self, start: int) -> int:
        """Need the one frame that the first output frame copies."""
        return source_frame(start) if self.is_doubling else start

    def compute(self, tail: Tail, start: int) -> Tail:
        """Repeat the frames from the source of `start` on; the clip's frame 0 gives one frame only."""
        source = self.first_input(start)
        frames = self.module(tail.since(source).frames, first_chunk=source == 0)
        first = max(0, 2 * source - 1) if self.is_doubling else source
        return Tail(frames, first).since(start)


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages one after the other."""

    stages: Sequence[Stage]

    def starts(self, start: int) -> list[int]:
        """Return the index of the first frame that each stage is given, then `start`."""
        found = [start]
        for stage in reversed(self.stages):
            found.append(stage.first_input(found[-1]))
        return found[::-1]

    def first_input(self, start: int) -> int:
        """Need what the first stage needs for what the second needs, and so on."""
        return self.starts(start)[0]

    def compute(self, tail: Tail, start: int) -> Tail:
        """Run every stage from the frame on that the next one needs."""
        for stage, wanted in zip(self.stages, self.starts(start)[1:], strict=True):
            tail = stage.compute(tail, wanted)
        return tail


@dataclass(frozen=True, slots=True)
class Sum:
    """Two stages of the same input, added."""

    main: Stage
    shortcut: Stage

    def first_input(self, start: int) -> int:
        """Need what either needs."""
        return min(self.main.first_input(start), self.shortcut.first_input(start))

    def compute(self, tail: Tail, start: int) -> Tail:
        """Add the frames from `start` on."""
        return Tail(self.main.compute(tail, start).frames + self.shortcut.compute(tail, start).frames, start)


def source_frame(index: int) -> int:
    """Return the frame that frame `index` comes from where every frame but frame 0 becomes two."""
    return (index + 1) // 2


def decode_since(decoder: nn.Module, latents: Tensor, start: int) -> Tensor:
    """Decode raw latents `b c t y x` with a diffusers decoder: the clip's patches `b c t y x` from frame `start` on.

    They are the same frames of a decode of everything. Source: the decoder's causality, level by level.
    """
    return decoder_chain(decoder).compute(Tail(latents, 0), start).frames


def decoder_chain(decoder: nn.Module) -> Chain:
    """Return the stages of diffusers' `WanDecoder3d`."""
    middle = decoder.get_submodule("mid_block")
    first, *later = (_residual(block) for block in _children(middle, "resnets"))
    attentions = (EachFrame(block) for block in _children(middle, "attentions"))
    pairs = [stage for pair in zip(attentions, later, strict=True) for stage in pair]
    ups = [_up_block(block) for block in _children(decoder, "up_blocks")]
    return Chain([_convolve(decoder, "conv_in"), first, *pairs, *ups, *_activated(decoder, "norm_out", "conv_out")])


def _residual(block: nn.Module) -> Sum:
    shortcut = block.get_submodule("conv_shortcut")
    main = Chain([*_activated(block, "norm1", "conv1"), *_activated(block, "norm2", "conv2")])
    return Sum(main, Convolve(shortcut) if isinstance(shortcut, nn.Conv3d) else EachFrame(shortcut))


def _up_block(block: nn.Module) -> Stage:
    main: list[Stage] = [_residual(each) for each in _children(block, "resnets")]
    names = dict(block.named_modules())
    upsampler = names.get("upsampler") or names.get("upsamplers.0")  # the blocks of Wan 2.2 and of Wan 2.1
    if upsampler is None:
        return Chain(main)
    is_doubling = hasattr(upsampler, "time_conv")
    main += [DoubleRate(_convolve(upsampler, "time_conv"))] if is_doubling else []
    main.append(EachFrame(_as_pictures(upsampler.get_submodule("resample"))))
    shortcut = names.get("avg_shortcut")
    return Chain(main) if shortcut is None else Sum(Chain(main), RepeatPixels(shortcut, is_doubling))


def _activated(owner: nn.Module, norm: str, convolution: str) -> tuple[Stage, Stage]:
    norm_of, activation = owner.get_submodule(norm), owner.get_submodule("nonlinearity")
    return EachFrame(lambda frames: activation(norm_of(frames))), _convolve(owner, convolution)


def _as_pictures(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def apply(frames: Tensor) -> Tensor:
        pictures = module(frames.transpose(1, 2).flatten(0, 1))
        return pictures.unflatten(0, (-1, frames.shape[2])).transpose(1, 2)

    return apply


def _convolve(owner: nn.Module, name: str) -> Convolve:
    return Convolve(cast("nn.Conv3d", owner.get_submodule(name)))


def _children(owner: nn.Module, name: str) -> Iterable[nn.Module]:
    return owner.get_submodule(name).children()
