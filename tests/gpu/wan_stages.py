"""The stages of the full-size measurement. Each returns what it found; NotMeasured says why one did not."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor, nn
from wan_bench import FIRST, Bench, NotMeasured, own_ways
from wan_parts import Clip, build_autoencoder, build_rollout, like, relative, their_velocity, theirs_of

from foreframe_engines.runtime.typed_graph import Precision
from foreframe_models.flow import FlowNetwork, Tables
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.roofline import own_work, reference_work
from foreframe_models.savings import NO_SAVINGS
from foreframe_models.timing import Timing, Way, time_in_turns
from foreframe_models.torch_engine import lower_transformer
from foreframe_models.wan_vae import count_frames
from foreframe_models.wan_vae_graphs import WanDecode, WanDecodeTail, WanEncode

MAX_APART = 6e-2
"""How far, as a share, an answer may be from eager torch's to be timed: 30 layers in bfloat16 round to 2e-2."""


@torch.inference_mode()
def parity(bench: Bench) -> dict[str, object]:
    """Compare our forward with diffusers' at reduced depth, in single precision and in the precision that serves."""
    config = bench.sizes.config(bench.sizes.clips[0])
    config = replace(config, transformer=replace(config.transformer, num_layers=bench.sizes.parity_layers))
    single = build_rollout(config, bench.device, Precision.FP32)
    half = like(single)
    lower_transformer(half.transformer, bench.precision)
    clip = Clip.draw(config, 2, bench.device)
    expected = velocity_of(single, clip)
    found: dict[str, object] = {"layers": config.transformer.num_layers, "members": 2}
    found["savings off against on, single precision, largest difference"] = largest(
        velocity_of(single, clip, savings_are_on=False), expected
    )
    found |= {
        f"{name}, {bench.precision}, from single precision": relative(run.velocity(config.context_latents), expected)
        for name, run in own_ways(bench, lambda: like(half), clip, 2).items()
    }
    try:
        bench.require_diffusers()
    except NotMeasured as error:
        return found | {"without diffusers": str(error)}
    for name, model in (("single precision", single), (str(bench.precision), half)):
        answer = their_velocity(
            theirs_of(model.transformer, bench.device), config, clip.latents(2), FIRST, model.prompt
        )
        found[f"diffusers, {name}, from ours in single precision"] = relative(answer, expected)
        if model is single:
            found["diffusers against ours, single precision, largest difference"] = largest(answer, expected)
    return found


def velocity_of(model: RolloutModel, clip: Clip, *, savings_are_on: bool = True) -> Tensor:
    """Run our network on all members of a clip."""
    network = FlowNetwork(model) if savings_are_on else FlowNetwork(model, NO_SAVINGS)
    members = len(clip.noise)
    times = torch.full((members, model.config.num_latents), FIRST, device=clip.noise.device)
    times[:, : model.config.context_latents] = 0.0
    tables = network.tables(clip.states[None])
    shared = Tables(tables.modulation.expand(members, *tables.modulation.shape[1:]))
    return network(clip.latents(members), times, shared)


def largest(answer: Tensor, expected: Tensor) -> float:
    """Return the largest difference."""
    return float((answer - expected).abs().max())


def roofline(bench: Bench) -> dict[str, object]:
    """Measure what this device can do."""
    bench.require_time(30, "the roofline")
    ceilings = bench.ceilings
    found: dict[str, object] = {f"{name} per s": value for name, value in ceilings.measured.items()}
    for clip in bench.sizes.clips:
        config, tokens = bench.sizes.config(clip), bench.sizes.tokens(clip)
        found[f"floor of a step of {tokens} tokens, ms"] = reference_work(config, 1).floor_ms(ceilings)
        found[f"floor of a step of {tokens} tokens without what is spared here, ms"] = own_work(config, 1).floor_ms(
            ceilings
        )
    return found


@torch.inference_mode()
def step(bench: Bench) -> dict[str, object]:
    """Time a solver step of one member in every way, in turns with diffusers' forward, for every clip size."""
    return {f"{bench.sizes.tokens(clip)} tokens": _step_of(bench, clip) for clip in bench.sizes.clips}


def _step_of(bench: Bench, size: tuple[int, int]) -> dict[str, object]:
    bench.require_time(90, f"a step of {bench.sizes.tokens(size)} tokens")
    config = bench.sizes.config(size)
    clip = Clip.draw(config, 1, bench.device)
    runs = own_ways(bench, lambda: bench.model(size), clip, 1)
    expected = runs["torch eager"].velocity(config.context_latents)
    apart = {name: relative(run.velocity(config.context_latents), expected) for name, run in runs.items()}
    ways: dict[str, Way] = dict(runs)
    theirs, reason = _their_ways(bench, config, clip)
    apart |= {name: relative(way(), expected) for name, way in theirs.items()}
    near = {name: way for name, way in (ways | theirs).items() if apart[name] <= MAX_APART}
    timings = time_in_turns(near, bench.device, rounds=bench.sizes.rounds)
    found: dict[str, object] = {"without diffusers": reason} if reason else {}
    found |= {name: {"not timed, as far from torch eager as": value} for name, value in apart.items()}
    return found | {
        name: {"from torch eager": apart[name], **row} for name, row in _rows(bench, config, timings).items()
    }


def _rows(bench: Bench, config: RolloutConfig, timings: Mapping[str, Timing]) -> dict[str, dict[str, object]]:
    floor_ms, own_ms = (work(config, 1).floor_ms(bench.ceilings) for work in (reference_work, own_work))
    eager = timings.get("diffusers eager")
    return {
        name: {
            **asdict(timing),
            "fraction of the floor": round(floor_ms / timing.median, 4),
            "fraction of the floor of what is left to do": round(own_ms / timing.median, 4),
            "times diffusers eager": None if eager is None else round(eager.median / timing.median, 3),
        }
        for name, timing in timings.items()
    }


def _their_ways(bench: Bench, config: RolloutConfig, clip: Clip) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """Return diffusers' forward, eager and compiled, on the same weights; or why there is none."""
    try:
        bench.require_diffusers()
    except NotMeasured as error:
        return {}, str(error)
    transformer, prompt, latents = bench.rollout.transformer, bench.rollout.prompt, clip.latents()
    models = {"diffusers eager": theirs_of(transformer, bench.device)}
    if bench.compiler is not None:
        models["diffusers compiled"] = theirs_of(transformer, bench.device)
        models["diffusers compiled"].compile_repeated_blocks(fullgraph=True, backend=bench.compiler)
    return {name: partial(their_velocity, model, config, latents, FIRST, prompt) for name, model in models.items()}, ""


@torch.inference_mode()
def pictures(bench: Bench) -> dict[str, object]:
    """Time encoding the context and decoding, of the whole clip and of its last frames, against diffusers."""
    bench.require_diffusers()
    autoencoder = build_autoencoder(bench.sizes, bench.device, bench.dtype)
    return {f"{sum(clip)} latents": _pictures_of(bench, autoencoder, clip) for clip in bench.sizes.clips}


def _pictures_of(bench: Bench, autoencoder: nn.Module, size: tuple[int, int]) -> dict[str, object]:
    bench.require_time(60, f"decoding {sum(size)} latents")
    config, vae = bench.sizes.config(size), autoencoder.vae
    rows, columns = (length * bench.sizes.vae.scale_factor_spatial for length in config.latent_size)
    latents = Clip.draw(config, 1, bench.device).latents()
    shape = (1, count_frames(config.context_latents), rows, columns, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    raw = (latents * autoencoder.latents_std + autoencoder.latents_mean).transpose(1, 2).to(bench.dtype)
    shown = (frames.float().permute(0, 4, 1, 2, 3) / 127.5 - 1.0).to(bench.dtype)
    ways: dict[str, Way] = {
        "encode the context": partial(WanEncode(autoencoder), frames),
        "decode everything": partial(WanDecode(autoencoder), latents),
        "decode the last latent": partial(WanDecodeTail(autoencoder), latents),
        "diffusers: encode the context": partial(_their_encode, vae, shown),
        "diffusers: decode everything": partial(_their_decode, vae, raw),
    }
    theirs = _their_decode(vae, raw).float()
    tail = autoencoder.decode_tail(latents)
    found: dict[str, object] = {
        "decode from diffusers'": relative(autoencoder.decode_span(latents, 0, theirs.shape[2]), theirs),
        "last latent from diffusers'": relative(tail, theirs[:, :, -tail.shape[2] :]),
        "operations of decoding everything": _count_operations(ways["decode everything"]),
        "operations of the last latent": _count_operations(ways["decode the last latent"]),
    }
    timings = time_in_turns(ways, bench.device, rounds=max(2, bench.sizes.rounds // 2))
    found |= {name: asdict(timing) for name, timing in timings.items()}
    least_ms = 1000 * found["operations of decoding everything"] / bench.ceilings.convolutions  # type: ignore[operator]
    return found | {"floor of decoding everything, ms": least_ms}


def _their_encode(vae: nn.Module, shown: Tensor) -> Tensor:
    return vae.encode(shown).latent_dist.mode()


def _their_decode(vae: nn.Module, raw: Tensor) -> Tensor:
    return vae.decode(raw, return_dict=False)[0]


def _count_operations(way: Way) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - takes a while to import

    with FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())
