"""The graphs of a rollout model: encode, condition, step, with guidance step_guided, and decode. Knows no files."""

import torch
from torch import Tensor, nn

from foreframe_engines.solvers import Solver, num_slots
from foreframe_models.autoencoder import FrameAutoencoder
from foreframe_models.flow import FlowNetwork, Tables, euler_move, unipc_move
from foreframe_models.graph import Graph
from foreframe_models.rollout import RolloutConfig, RolloutModel
from foreframe_models.savings import ALL_SAVINGS, Savings

FREE_MODULATION = "free_modulation"
TABLE_NAMES = ("modulation", FREE_MODULATION, "token_bias")
"""What `condition` makes, where the model has it: the second only with guidance, the third only with a state map."""


class Encode(nn.Module):
    """Frames uint8 `1 t h w 3` to clean latents `1 t c y x`."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        """Encode each frame by itself."""
        pictures = frames[0].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.autoencoder.encode(pictures)[None]


class _OverNetwork(nn.Module):
    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.network = network


class Condition(_OverNetwork):
    """Physical states `1 n d` to what all steps of all members share, in float32: see `TABLE_NAMES`.

    Every bundle's graph is also given the clean context latents `1 t c y x`; this family conditions on states alone.
    """

    def forward(self, states: Tensor, context_latents: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 - see above
        """Compute the tables that this model has, in the order of their names."""
        tables = self.network.tables(states)
        every = (tables.modulation, tables.free_modulation, tables.token_bias)
        return tuple(table.float() for table in every if table is not None)


class EulerStep(_OverNetwork):
    """One Euler step of `b` members; the update is inside."""

    def forward(
        self, latents: Tensor, time: Tensor, next_time: Tensor, modulation: Tensor, token_bias: Tensor | None = None
    ) -> Tensor:
        """Move latents `b n c y x` from times `b n` to `next_time`."""
        answer = self.network(latents, time, Tables(modulation, None, token_bias))
        return euler_move(self.network.rollout, answer, latents, time, next_time)


class GuidedEulerStep(_OverNetwork):
    """The same with guidance `b`: both branches run in one forward."""

    def forward(  # noqa: PLR0913, PLR0917 - the graph's inputs
        self,
        latents: Tensor,
        time: Tensor,
        next_time: Tensor,
        guidance: Tensor,
        modulation: Tensor,
        free_modulation: Tensor,
        token_bias: Tensor | None = None,
    ) -> Tensor:
        """Move latents `b n c y x` from times `b n` to `next_time`."""
        answer = self.network(latents, time, Tables(modulation, free_modulation, token_bias), guidance)
        return euler_move(self.network.rollout, answer, latents, time, next_time)


class UnipcStep(_OverNetwork):
    """One UniPC step of `b` members, whose state has four slots; see `foreframe_engines.solvers`."""

    def forward(
        self, latents: Tensor, time: Tensor, coefficients: Tensor, modulation: Tensor, token_bias: Tensor | None = None
    ) -> Tensor:
        """Advance the state `b 4 n c y x`, whose slot 0 is at times `b n`, by the weights `b 2 5`."""
        answer = self.network(latents[:, 0], time, Tables(modulation, None, token_bias))
        return unipc_move(self.network.rollout, answer, latents, time, coefficients)


class GuidedUnipcStep(_OverNetwork):
    """The same with guidance `b`: both branches run in one forward."""

    def forward(  # noqa: PLR0913, PLR0917 - the graph's inputs
        self,
        latents: Tensor,
        time: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
        modulation: Tensor,
        free_modulation: Tensor,
        token_bias: Tensor | None = None,
    ) -> Tensor:
        """Advance the state `b 4 n c y x`, whose slot 0 is at times `b n`, by the weights `b 2 5`."""
        answer = self.network(latents[:, 0], time, Tables(modulation, free_modulation, token_bias), guidance)
        return unipc_move(self.network.rollout, answer, latents, time, coefficients)


class Decode(nn.Module):
    """Latents `b f c y x` to frames uint8 `b f h w 3`, rounded and clipped."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode each latent by itself."""
        pictures = self.autoencoder.decode(latents.flatten(0, 1))
        grey = ((pictures + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
        return grey.permute(0, 2, 3, 1).unflatten(0, latents.shape[:2])  # type: ignore[no-untyped-call]


_STEPS = {Solver.EULER: EulerStep, Solver.UNIPC: UnipcStep}
_GUIDED_STEPS = {Solver.EULER: GuidedEulerStep, Solver.UNIPC: GuidedUnipcStep}


def frame_graphs_of(autoencoder: FrameAutoencoder, config: RolloutConfig) -> dict[str, Graph]:
    """Return `encode` and `decode` of a per-frame autoencoder."""
    rows, columns = config.latent_size
    patch = autoencoder.config.patch
    frames = torch.zeros(1, config.context_latents, rows * patch, columns * patch, 3, dtype=torch.uint8)
    latents = torch.zeros(2, 3, autoencoder.config.channels, rows, columns)
    return {
        "encode": Graph(Encode(autoencoder), {"frames": frames}, ("latents",), {}),
        "decode": Graph(Decode(autoencoder), {"latents": latents}, ("frames",), {"latents": {0: "b", 1: "f"}}),
    }


def flow_graphs_of(
    rollout: RolloutModel, *, solver: Solver = Solver.EULER, savings: Savings = ALL_SAVINGS
) -> dict[str, Graph]:
    """Return `condition`, `step` and, where guidance can change the answer, `step_guided`.

    They hold the model's weights as they are now: build them anew after a merge or a change of adapters.
    """
    config, network = rollout.config, FlowNetwork(rollout, savings).eval()
    latents = torch.zeros(2, config.num_latents, config.transformer.out_channels, *config.latent_size)
    states = rollout.states_mean.float().expand(1, config.state_rows, -1).clone()
    condition_inputs = {"states": states, "context_latents": latents[:1, : config.context_latents]}
    with torch.no_grad():
        tables = _named_tables(network, states)
    graphs = {"condition": Graph(Condition(network), condition_inputs, tuple(tables), {})}
    step_tables = {name: table for name, table in tables.items() if name != FREE_MODULATION}
    graphs["step"] = _step_graph(_STEPS[solver](network), solver, latents, {}, step_tables)
    if network.is_guidable:
        guidance = {"guidance": torch.ones(2)}
        graphs["step_guided"] = _step_graph(_GUIDED_STEPS[solver](network), solver, latents, guidance, tables)
    return graphs


def _named_tables(network: FlowNetwork, states: Tensor) -> dict[str, Tensor]:
    """Compute the tables of a model by name, each `2 ...`."""
    tables = network.tables(states)
    named = zip(TABLE_NAMES, (tables.modulation, tables.free_modulation, tables.token_bias), strict=True)
    return {name: torch.cat([table, table]).float() for name, table in named if table is not None}


def _step_graph(
    step: nn.Module, solver: Solver, latents: Tensor, guidance: dict[str, Tensor], tables: dict[str, Tensor]
) -> Graph:
    time = torch.full(latents.shape[:2], 0.5)
    if solver is Solver.EULER:
        inputs = {"latents": latents, "time": time, "next_time": time * 0.5}
    else:
        slots = latents[:, None].repeat(1, num_slots(solver), 1, 1, 1, 1)
        inputs = {"latents": slots, "time": time, "coefficients": torch.full((len(latents), 2, 5), 0.5)}
    inputs |= guidance | tables
    return Graph(step, inputs, ("latents_next",), {name: {0: "b"} for name in inputs})
