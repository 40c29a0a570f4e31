"""The graphs of a rollout model: what they are called and take, that ONNX Runtime agrees, and what never moves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from foreframe_engines import get_schedule
from foreframe_engines.runtime.ort import OrtSession
from foreframe_engines.solvers import Solver, coefficients
from foreframe_models.flow import FlowNetwork
from foreframe_models.graph import Graph, export_graph
from foreframe_models.rollout import RolloutConfig, RolloutModel, Target
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.sampling import Plan, sample_latents

CONTEXT, FUTURE = 2, 4
TIMES = get_schedule(3, 3.0)

MakeModel = Callable[..., RolloutModel]


@pytest.fixture
def guidable(make_config: Callable[..., RolloutConfig]) -> MakeModel:
    """Make a model with a token for absent states and two prompts with padding."""

    def make(*, is_mapped: bool = False, target: Target = Target.VELOCITY) -> RolloutModel:
        torch.manual_seed(0)
        config = make_config(is_residual=False, is_mapped=is_mapped, target=target)
        state = replace(config.state, has_no_states_token=True)
        config = replace(config, prompt_length=16, has_negative_prompt=True, state=state)
        model = RolloutModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.prompt[:, 0].normal_()
        model.negative_prompt[:, :3].normal_()  # type: ignore[index]
        return model

    return make


@pytest.fixture
def clip() -> tuple[Tensor, Tensor, Tensor]:
    """Clean context, noise of three members, states."""
    generator = torch.Generator().manual_seed(1)
    context, noise = (torch.randn(*shape, 8, 2, 2, generator=generator) for shape in ((CONTEXT,), (3, FUTURE)))
    return context, noise, torch.randn(6, 6, generator=generator)


def state_inputs(solver: Solver, index: int, num_rows: int) -> dict[str, np.ndarray]:
    """Return what a step takes besides its state, guidance and tables."""

    def row(time: float) -> np.ndarray:
        return np.tile(np.float32([0.0] * CONTEXT + [time] * FUTURE), (num_rows, 1))

    if solver is Solver.EULER:
        return {"time": row(TIMES[index]), "next_time": row(TIMES[index + 1])}
    return {"time": row(TIMES[index]), "coefficients": np.stack([coefficients(TIMES, index)] * num_rows)}


def draw(
    run: Callable[[dict[str, np.ndarray]], np.ndarray],
    solver: Solver,
    clip: tuple[Tensor, Tensor, Tensor],
    shared: dict[str, np.ndarray],
) -> np.ndarray:
    """Follow a step graph along the schedule; in every slot the context must stay as it is."""
    context, noise, _ = (part.numpy() for part in clip)
    state = np.concatenate([np.broadcast_to(context, (3, *context.shape)), noise], axis=1)
    if solver is Solver.UNIPC:
        state = np.stack([state] * 4, axis=1)
    for index in range(len(TIMES) - 1):
        before = state
        state = run({"latents": state, **state_inputs(solver, index, 3), **shared})
        assert state.shape == before.shape
        np.testing.assert_array_equal(state[..., :CONTEXT, :, :, :], before[..., :CONTEXT, :, :, :])
    return (state if solver is Solver.EULER else state[:, 0])[:, CONTEXT:]


def shared_inputs(graphs: dict[str, Graph], name: str, states: Tensor, guidance: float) -> dict[str, np.ndarray]:
    """Return tables, and guidance where the graph takes it, for three rows."""
    condition = graphs["condition"]
    with torch.no_grad():
        tables = condition.module(states[None], torch.zeros(1, CONTEXT, 8, 2, 2))
    every = {name: table.numpy().repeat(3, axis=0) for name, table in zip(condition.outputs, tables, strict=True)}
    every["guidance"] = np.full(3, guidance, np.float32)
    return {key: value for key, value in every.items() if key in graphs[name].inputs}


def torch_runner(graph: Graph) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return graph.module(*(torch.from_numpy(inputs[name]) for name in graph.inputs)).numpy()

    return run


@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize(("name", "guidance"), [("step", 1.0), ("step_guided", 3.0)])
def test_a_step_graph_draws_what_the_loop_draws(
    guidable: MakeModel,
    clip: tuple[Tensor, Tensor, Tensor],
    solver: Solver,
    is_mapped: bool,
    name: str,
    guidance: float,
) -> None:
    model = guidable(is_mapped=is_mapped)
    graphs = flow_graphs_of(model, solver=solver)
    drawn = draw(torch_runner(graphs[name]), solver, clip, shared_inputs(graphs, name, clip[2], guidance))
    expected = sample_latents(FlowNetwork(model), *clip, Plan(TIMES, solver, guidance)).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_names_follow_what_the_model_has(guidable: MakeModel, make_model: MakeModel) -> None:
    plain = flow_graphs_of(make_model(is_mapped=True))
    assert list(plain) == ["condition", "step"]
    assert plain["condition"].outputs == ("modulation", "token_bias")
    assert list(plain["step"].inputs) == ["latents", "time", "next_time", "modulation", "token_bias"]
    guided = flow_graphs_of(guidable(), solver=Solver.UNIPC)
    assert list(guided) == ["condition", "step", "step_guided"]
    assert guided["condition"].outputs == ("modulation", "free_modulation")
    assert list(guided["step"].inputs) == ["latents", "time", "coefficients", "modulation"]
    assert list(guided["step_guided"].inputs) == [
        "latents", "time", "coefficients", "guidance", "modulation", "free_modulation",
    ]  # fmt: skip


def test_a_weight_of_half_precision_leaves_the_borders_in_single(
    guidable: MakeModel, clip: tuple[Tensor, Tensor, Tensor]
) -> None:
    exact, half = guidable(), guidable().bfloat16()
    results = []
    for model in (exact, half):
        graphs = flow_graphs_of(model, solver=Solver.UNIPC)
        shared = shared_inputs(graphs, "step_guided", clip[2], 2.0)
        assert {value.dtype for value in shared.values()} == {np.dtype(np.float32)}
        results.append(draw(torch_runner(graphs["step_guided"]), Solver.UNIPC, clip, shared))
    assert results[1].dtype == np.float32
    assert 0 < np.square(results[1] - results[0]).mean() <= 1e-3 * results[0].var()


def test_onnx_runtime_draws_the_same_with_guidance_in_any_batch(
    guidable: MakeModel, clip: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    graphs = flow_graphs_of(guidable(is_mapped=True), solver=Solver.UNIPC)
    path = tmp_path / "step_guided.onnx"
    onnx.save(export_graph(graphs["step_guided"]), path)
    session = OrtSession(path, num_threads=1)
    shared = shared_inputs(graphs, "step_guided", clip[2], 3.0)

    def one_by_one(inputs: dict[str, np.ndarray]) -> np.ndarray:
        rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(3)]
        return np.concatenate([session.run(row)["latents_next"] for row in rows])

    expected = draw(torch_runner(graphs["step_guided"]), Solver.UNIPC, clip, shared)
    together = draw(lambda inputs: session.run(inputs)["latents_next"], Solver.UNIPC, clip, shared)
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_array_equal(draw(one_by_one, Solver.UNIPC, clip, shared), together)
    assert expected.std() > 0.1
