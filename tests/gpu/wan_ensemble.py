"""Whole draws of the full-size measurement: the posterior mean, and ensembles in one batch, against diffusers' loop."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from wan_bench import Bench, NotMeasured, peak_bytes
from wan_parts import Clip, build_autoencoder, contract_of, import_diffusers, their_velocity, theirs_of

from foreframe_engines import Conditioning, GraphRolloutEngine, StepRow, get_schedule
from foreframe_engines.types import StepState
from foreframe_models.graph import Graph
from foreframe_models.rollout import RolloutConfig
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.timing import Timing, Way, time_in_turns
from foreframe_models.torch_engine import TorchOptions, compile_blocks, run_graphs
from foreframe_models.wan_vae_graphs import wan_vae_graphs

SHIFT = 5.0


def ensemble(bench: Bench) -> dict[str, object]:
    """Time whole draws by the engine that serves, states on the device, for every clip size."""
    return {f"{bench.sizes.tokens(clip)} tokens": _ensemble_of(bench, clip) for clip in bench.sizes.clips}


@torch.inference_mode()
def _ensemble_of(bench: Bench, size: tuple[int, int]) -> dict[str, object]:
    bench.require_time(120, f"ensembles of {bench.sizes.tokens(size)} tokens")
    sizes, config = bench.sizes, bench.sizes.config(size)
    clip = Clip.draw(config, sizes.members, bench.device)
    engine = open_engine(bench, size)
    draws = Draws(engine, clip, sizes.loop_steps)
    peak_bytes(bench.device)
    ways: dict[str, Way] = {
        "posterior mean": lambda: draws.run([0], (1.0, 0.0)),
        f"{sizes.members} members in one batch": lambda: draws.run(range(sizes.members), draws.times),
        "one member": lambda: draws.run([0], draws.times),
    }
    theirs, reason = _their_member(bench, config, clip)
    ways |= theirs
    timings = time_in_turns(ways, bench.device, rounds=sizes.loop_rounds)
    found: dict[str, object] = {"without diffusers": reason} if reason else {}
    found |= {name: timing.median for name, timing in timings.items()}
    found |= _say_ratios(timings, sizes.members)
    return found | {
        "steps": sizes.loop_steps,
        "frames are decoded": draws.can_decode,
        "peak bytes": peak_bytes(bench.device),
    }


def _say_ratios(timings: Mapping[str, Timing], members: int) -> dict[str, object]:
    together, alone = timings[f"{members} members in one batch"].median, timings["one member"].median
    found: dict[str, object] = {"one batch over as many draws of one": round(together / (members * alone), 4)}
    if "diffusers, one member" in timings:
        theirs = timings["diffusers, one member"].median
        found["one batch, times faster than diffusers' loop"] = round(members * theirs / together, 3)
        found["posterior mean, times faster than diffusers' loop"] = round(
            members * theirs / timings["posterior mean"].median, 2
        )
    return found


def open_engine(bench: Bench, size: tuple[int, int]) -> GraphRolloutEngine:
    """Open the engine that would serve; without diffusers it has no pictures, only latents."""
    config, model = bench.sizes.config(size), bench.model(size)
    if bench.compiler is not None:
        compile_blocks(model.transformer, bench.compiler)
    graphs: dict[str, Graph] = flow_graphs_of(model)
    try:
        bench.require_diffusers()
    except NotMeasured:
        pass
    else:
        graphs |= wan_vae_graphs(
            build_autoencoder(bench.sizes, bench.device, bench.dtype),
            context_latents=config.context_latents,
            num_latents=config.num_latents,
            latent_size=config.latent_size,
        )
    options = TorchOptions(str(bench.device), bench.precision, is_compiled=bench.compiler is not None)
    return run_graphs(contract_of(bench.sizes, size, (1, bench.sizes.members)), graphs, options)


class Draws:
    """Members of one request on an engine, from noise to frames; of those only the clip's last is decoded."""

    def __init__(self, engine: GraphRolloutEngine, clip: Clip, steps: int) -> None:
        self._engine = engine
        self._noise = clip.noise.cpu().numpy()
        self._conditioning: Conditioning = engine.condition(clip.context.cpu().numpy(), clip.states.cpu().numpy())
        self.times = get_schedule(steps, SHIFT)
        self.can_decode = "decode_tail" in engine.sessions

    def run(self, members: Sequence[int], times: Sequence[float]) -> np.ndarray:
        """Draw members in one batch and return their last frames, or latents where there are no pictures."""
        engine, conditioning = self._engine, self._conditioning
        states: list[StepState] = [engine.initial_latents(conditioning, self._noise[member]) for member in members]
        for index, (time, next_time) in enumerate(pairwise(times)):
            states = engine.step([StepRow(state, time, next_time, conditioning, times[:index]) for state in states])
        if not self.can_decode:
            return np.stack(states)
        # One at a time, as the server does between other requests' steps.
        return np.concatenate([engine.decode([state], [engine.contract.horizon]) for state in states])


def _their_member(bench: Bench, config: RolloutConfig, clip: Clip) -> tuple[dict[str, Way], str]:
    """Return diffusers' loop over one member, with its own decoder: an ensemble is that as often as it has members."""
    try:
        bench.require_diffusers()
    except NotMeasured as error:
        return {}, str(error)
    model = theirs_of(bench.rollout.transformer, bench.device)
    autoencoder = build_autoencoder(bench.sizes, bench.device, bench.dtype)
    prompt, times = bench.rollout.prompt, get_schedule(bench.sizes.loop_steps, SHIFT)

    def draw() -> Tensor:
        latents = _their_loop(model, config, clip, prompt, times)
        raw = (latents * autoencoder.latents_std + autoencoder.latents_mean).transpose(1, 2).to(bench.dtype)
        return autoencoder.vae.decode(raw, return_dict=False)[0].cpu()

    return {"diffusers, one member": draw}, ""


def _their_loop(model: nn.Module, config: RolloutConfig, clip: Clip, prompt: Tensor, times: Sequence[float]) -> Tensor:
    scheduler = import_diffusers().FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.array(times[:-1]))
    future = clip.noise[:1]
    for timestep, time in zip(scheduler.timesteps, times, strict=False):
        latents = torch.cat([clip.context[None], future], dim=1)
        answer = their_velocity(model, config, latents, time, prompt)
        future = scheduler.step(answer, timestep, future, return_dict=False)[0]
    return torch.cat([clip.context[None], future], dim=1)
