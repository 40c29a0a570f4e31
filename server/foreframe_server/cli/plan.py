"""`foreframe plan`: the simulated robot's hands moved to goal pictures, with a server's scores as the only model."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from foreframe_engines.episodes import FIRST_TEST_SEED
from foreframe_server.cli.console import print_json, print_pretty, track
from foreframe_server.cli.experiments import check_json_name
from foreframe_server.cli.faults import Fault
from foreframe_server.cli.gl import choose_gl
from foreframe_server.cli.plan_report import Views, draw_plans, plans_table, write_plans
from foreframe_server.cli.remote import connected
from foreframe_server.cli.serving import running_server
from foreframe_server.experiments.plans import (
    Attempt,
    GoalResult,
    Inference,
    name_strategies,
    summarise_plans,
)
from foreframe_server.settings import Settings

if TYPE_CHECKING:
    from foreframe_client import Client, Model
    from foreframe_client.planning import Plan
    from foreframe_models.worlds.eve_tabletop.reach import ReachTask

_TIMEOUT_S = 600.0
_TTL_S = 600.0
_MIN_STD_M = 0.005
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """How many goals, how hard each is searched for, and by which strategies (none: all that the model can do)."""

    goals: int
    candidates: int
    rounds: int
    seed: int
    metric: Literal["pixel", "latent"]
    strategies: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """A goal and what the robot saw before, in as many frames as the model takes."""

    task: "ReachTask"
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    goal: UInt8[np.ndarray, "h w 3"]


def plan_goals(settings: Settings, url: str | None, wish: Wish, out: Path | None, *, is_json: bool) -> None:
    """Plan to every goal by every strategy, print the distances, and with `out` write them and a picture beside.

    Raises BundleError, ForeframeError, or Fault without MuJoCo, an OpenGL or a fitting model.
    """
    # Not imported: mujoco reads MUJOCO_GL when it is.
    if find_spec("mujoco") is None:
        raise Fault("MuJoCo is not installed; run `pip install 'foreframe[world]'`")
    if out is not None:
        check_json_name(out)
    choose_gl()
    with _address(settings, url) as address, connected(address, timeout_s=_TIMEOUT_S) as client:
        model = _fitting_model(client)
        strategies = _able_strategies(wish, model)
        seeds = range(FIRST_TEST_SEED + wish.seed, FIRST_TEST_SEED + wish.seed + wish.goals)
        reached = (_reach_for(client, model, seed, strategies, wish) for seed in seeds)
        done = list(track(reached, f"goals by {len(strategies)} strategies", wish.goals))
    report = summarise_plans([result for result, _ in done])
    record = {"experiment": "planning", "model": model.id, "revision": model.revision, **_asked(wish), **asdict(report)}
    if out is not None:
        write_plans(out, record, draw_plans(done, report.best_strategy, model.id))
    if is_json:
        print_json(record)
    else:
        print_pretty(plans_table(report, f"{model.id} {model.revision}"))


def _address(settings: Settings, url: str | None) -> contextlib.AbstractContextManager[str]:
    return running_server(settings) if url is None else contextlib.nullcontext(url)


def _asked(wish: Wish) -> Mapping[str, object]:
    return {"candidates": wish.candidates, "rounds": wish.rounds, "seed": wish.seed, "metric": wish.metric}


def _fitting_model(client: "Client") -> "Model":
    from foreframe_models.worlds.eve_tabletop.names import STATE_NAMES
    from foreframe_models.worlds.eve_tabletop.reach import HORIZON_FRAMES, NUM_CONTEXT_FRAMES

    model = client.models()[0]
    sizes = {(camera.height, camera.width) for camera in model.cameras}
    is_square = len(sizes) == 1 and all(height == width for height, width in sizes)
    is_long_enough = model.horizon >= HORIZON_FRAMES and model.context_frames <= NUM_CONTEXT_FRAMES
    if model.state_dim != len(STATE_NAMES) or not is_square or not is_long_enough:
        raise Fault(f"{model.id} is not a model of the simulated robot: other states, cameras or horizon")
    return model


def _able_strategies(wish: Wish, model: "Model") -> dict[str, Inference]:
    known = name_strategies(wish.metric)
    needs = {name: "likelihood" if how.metric == "tokens" else "predict" for name, how in known.items()}
    able = {name: how for name, how in known.items() if needs[name] in model.capabilities}
    asked = wish.strategies or tuple(able)
    for name in asked:
        if name not in able:
            raise Fault(f"{model.id} cannot {needs[name]}, which the strategy {name} needs")
    return {name: able[name] for name in asked}


def _reach_for(
    client: "Client", model: "Model", seed: int, strategies: Mapping[str, Inference], wish: Wish
) -> tuple[GoalResult, Views]:
    """Plan to one goal by every strategy, carry each plan out, and carry out the first round's random actions."""
    from foreframe_models.worlds.eve_tabletop.episode import open_camera
    from foreframe_models.worlds.eve_tabletop.reach import ReachTask
    from foreframe_models.worlds.eve_tabletop.robot import SIDES

    task = ReachTask(seed)
    num_seen = len(task.context) if "likelihood" in model.capabilities else model.context_frames
    with open_camera(task.model, model.cameras[0].height) as camera:
        frames = np.stack([camera.frame(moment) for moment in task.context[-num_seen:]])
        scene = _Scene(task, frames, task.states[-num_seen:], camera.frame(task.goal.moment))
        searches = {name: _search(client, scene, how, wish) for name, how in strategies.items()}
        ends = {name: task.execute(search.action) for name, search in searches.items()}
        views = Views(frames[-1], scene.goal, {name: camera.frame(end.moment) for name, end in ends.items()})
    attempts = tuple(search.attempt(name, task.distance_m(ends[name].hand_m)) for name, search in searches.items())
    proposed = next(iter(searches.values())).proposed  # the same for every strategy: no score has been seen yet
    random_m = float(np.mean([task.distance_m(task.execute(action).hand_m) for action in proposed]))
    start_m = round(task.distance_m(task.start_hand_m), _DIGITS)
    return GoalResult(seed, SIDES[task.side], start_m, round(random_m, _DIGITS), attempts), views


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A plan and how long it took to find."""

    plan: "Plan"
    seconds: float

    @property
    def action(self) -> Float64[np.ndarray, " a"]:
        return _known(self.plan.action)

    @property
    def proposed(self) -> Float64[np.ndarray, "k a"]:
        return _known(self.plan.rounds[0].actions)

    def attempt(self, strategy: str, distance_m: float) -> Attempt:
        return Attempt.of(strategy, distance_m, self.seconds, self.plan.best_costs.tolist())


def _search(client: "Client", scene: _Scene, how: Inference, wish: Wish) -> _Search:
    from foreframe_client import Objective
    from foreframe_client.planning import CrossEntropyPlanner, Gaussian
    from foreframe_models.worlds.eve_tabletop.reach import PROPOSAL_STD_M

    proposal = Gaussian(np.zeros(len(PROPOSAL_STD_M)), PROPOSAL_STD_M)
    planner = CrossEntropyPlanner(
        scene.task.candidates,
        proposal,
        num_candidates=wish.candidates,
        num_elites=max(1, wish.candidates // 5),
        rounds=wish.rounds,
        min_std=_MIN_STD_M,
    )
    started = time.perf_counter()
    with client.observe(scene.frames, scene.states, ttl_s=_TTL_S) as observation:
        score = partial(
            client.score,
            observation=observation,
            objectives=(Objective.goal_image(scene.goal, metric=how.metric),),
            ensemble=how.size,
            reducer=how.reducer,
            strategy=how.strategy,
            seed=wish.seed,
            top_n=0,
        )
        plan = planner.plan(score, seed=wish.seed)
    return _Search(plan, time.perf_counter() - started)


def _known(actions: Float64[np.ndarray, "..."] | None) -> Float64[np.ndarray, "..."]:
    if actions is None:
        raise RuntimeError("the planner returned no action")
    return actions
