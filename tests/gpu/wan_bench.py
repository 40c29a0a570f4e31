"""What all stages of the full-size measurement share: device, sizes, the model, the clock, and what was measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from wan_parts import Clip, Sizes, build_rollout, frame_times, import_diffusers, like

from foreframe_engines.runtime.resident import DeviceBatch, Row
from foreframe_engines.runtime.torch_session import TorchSession
from foreframe_engines.runtime.typed_graph import Precision
from foreframe_models.graph import Graph
from foreframe_models.rollout import RolloutModel
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.roofline import Ceilings, Shapes, measure_ceilings
from foreframe_models.torch_engine import compile_blocks

FIRST, NEXT = 1.0, 0.75
"""The times of the step that is compared."""


class NotMeasured(Exception):
    """Why a number is missing, in one line."""


@dataclass
class Bench:
    """One run, of at most `limit_s` seconds by `clock`. compiler: torch.compile's backend, None to leave it out."""

    device: torch.device
    sizes: Sizes
    precision: Precision = Precision.BF16
    compiler: str | None = "inductor"
    limit_s: float = 540.0
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    def require_time(self, seconds: float, what: str) -> None:
        """Raise NotMeasured when so much time is not left."""
        left_s = self.limit_s - (self.clock() - self.started_s)
        if left_s < seconds:
            raise NotMeasured(f"{left_s:.0f} s were left, {what} takes about {seconds:.0f}")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision is Precision.BF16 else torch.float32

    @cached_property
    def rollout(self) -> RolloutModel:
        """The model at full depth, for the first clip size."""
        return build_rollout(self.sizes.config(self.sizes.clips[0]), self.device, self.precision)

    def model(self, clip: tuple[int, int]) -> RolloutModel:
        """Return a model of the same weights for another clip size, whose blocks may be compiled."""
        return like(self.rollout, self.sizes.config(clip))

    @cached_property
    def ceilings(self) -> Ceilings:
        """What this device can do, measured the first time it is asked for."""
        sizes = self.sizes
        tokens = tuple(sizes.tokens(clip) for clip in sizes.clips)
        shapes = Shapes(sizes.model.transformer, tokens, sizes.square, sizes.copy_bytes, sizes.picture)
        return measure_ceilings(self.device, self.dtype, shapes)

    def require_diffusers(self) -> None:
        """Raise NotMeasured without diffusers."""
        try:
            import_diffusers()
        except (ImportError, RuntimeError) as error:  # it imports its parts when they are first asked for
            raise NotMeasured(f"diffusers is not here: {error}") from error


@dataclass(eq=False)
class StepRun:
    """One Euler step of some members, as the server runs it: states on the device, tables kept there."""

    session: TorchSession
    rows: dict[str, list[Row]]
    tables: tuple[str, ...]
    members: int

    @classmethod
    def of(cls, graphs: dict[str, Graph], clip: Clip, rollout: RolloutModel, members: int) -> "StepRun":
        """Set up a step from time FIRST to NEXT."""
        device = rollout.prompt.device
        session = TorchSession(
            graphs["step"].module, tuple(graphs["step"].inputs), graphs["step"].outputs, device=str(device)
        )
        latents = clip.latents(members).contiguous()
        batch = DeviceBatch(latents, tuple(latents.shape), np.dtype(np.float32), session.memory)
        rows: dict[str, list[Row]] = {"latents": list(batch.rows(members))}
        for name, time_at in (("time", FIRST), ("next_time", NEXT)):
            rows[name] = list(frame_times(rollout.config, time_at, members, torch.device("cpu")).numpy())
        with torch.inference_mode():
            tables = graphs["condition"].module(clip.states[None], clip.context[None])
        names = graphs["condition"].outputs
        for name, table in zip(names, tables, strict=True):
            if name in session.input_names:
                rows[name] = [table[0].cpu().numpy()] * members
        return cls(session, rows, names, members)

    def __call__(self) -> DeviceBatch:
        return self.session.run_resident(self.rows, self.members, lasting=self.tables)["latents_next"]

    def velocity(self, context: int) -> Tensor:
        """Return the future's velocity `b f c y x` that the step moved along."""
        before = torch.stack([row.value for row in self.rows["latents"]])  # type: ignore[union-attr]
        return (self().value - before)[:, context:] / (NEXT - FIRST)

    def record(self) -> None:
        """Record the step as a CUDA graph."""
        self.session.record({name: np.stack([np.asarray(row) for row in rows]) for name, rows in self.rows.items()})


def own_ways(bench: Bench, model: Callable[[], RolloutModel], clip: Clip, members: int) -> dict[str, StepRun]:
    """Return every way that this device has to run our step; each has weights in common with the others."""
    openers: dict[str, Callable[[], StepRun]] = {"torch eager": partial(_open, model, clip, members)}
    if bench.compiler is not None:
        openers["torch compiled"] = partial(_open, model, clip, members, compiler=bench.compiler)
    if bench.device.type == "cuda":
        openers["CUDA graph"] = partial(_open, model, clip, members, is_recorded=True)
        if bench.compiler is not None:
            compiled = partial(_open, model, clip, members, compiler=bench.compiler, is_recorded=True)
            openers["compiled and CUDA graph"] = compiled
    return {name: open_way() for name, open_way in openers.items()}


def _open(
    model: Callable[[], RolloutModel],
    clip: Clip,
    members: int,
    *,
    compiler: str | None = None,
    is_recorded: bool = False,
) -> StepRun:
    rollout = model()
    if compiler is not None:
        compile_blocks(rollout.transformer, compiler)
    run = StepRun.of(flow_graphs_of(rollout), clip, rollout, members)
    run()
    if is_recorded:
        run.record()
    return run


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that was in use since the last call, None off CUDA."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
