"""The environments against a real server with a toy engine: gymnasium's own checkers, and what an episode is."""

import threading
from dataclasses import replace

import gymnasium
import httpx
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from foreframe_client import Client, InvalidRequest, NonFinite, Objective, TransportError, UnknownModel
from foreframe_client.gym import Actions, RemoteWorldEnv, RemoteWorldVectorEnv, Start, Task, register, relative
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.cli.serving import running_server
from foreframe_server.opening import given
from foreframe_server.settings import Settings

CONTRACT = toy_contract()
PATIENCE_S = 20
RNG = np.random.default_rng(0)
STARTS = [
    Start(RNG.integers(0, 256, (4, 8, 8, 3), np.uint8), RNG.normal(size=(4, 3)).astype(np.float32)) for _ in range(3)
]
GOAL = RNG.integers(0, 256, (8, 8, 3), np.uint8)
MOVES = relative(["joint_0", "joint_2"], 0.2)
TASK = Task(STARTS, MOVES)


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0}), given(ToyRolloutEngine(CONTRACT))) as served:
        yield served


@pytest.fixture
def open_env(address):
    """Make environments and close them at the end; another class than RemoteWorldEnv may be given."""
    opened = []

    def make(task=TASK, kind=RemoteWorldEnv, **options):
        opened.append(kind(address, task, **options))
        return opened[-1]

    yield make
    for env in opened:
        env.close()


def play(env, seed, count, **options):
    """Reset and walk by actions that the seed decides; return everything that was observed."""
    rng = np.random.default_rng(seed)
    steps = [env.reset(seed=seed, **options)]
    steps += [env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)) for _ in range(count)]
    return steps


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        for name in ("pixels", "state"):
            assert np.array_equal(one[0][name], other[0][name])
        assert [np.array_equal(a, b) for a, b in zip(one[1:-1], other[1:-1], strict=True)].count(False) == 0
        assert one[-1].keys() == other[-1].keys()
        assert all(np.array_equal(one[-1][name], other[-1][name]) for name in one[-1])


@pytest.mark.parametrize("objectives", [[], [Objective.goal_image(GOAL)]], ids=["no reward", "goal"])
def test_gymnasium_finds_nothing_to_say(address, objectives):
    env = gymnasium.make(register(), server=address, task=Task(STARTS, MOVES, objectives))
    check_env(env.unwrapped)
    env.close()


def test_of_whole_rows_as_actions_gymnasium_says_only_that_they_are_not_normalised(address):
    env = gymnasium.make(register(), server=address, task=Task(STARTS))
    with pytest.warns(UserWarning, match="normalized space") as heard:
        check_env(env.unwrapped)
    assert len(heard) == 1
    assert env.action_space.high.tolist() == [3, 3, 3]
    env.close()


class Forgetful(RemoteWorldEnv):
    """Draws its starts and its noise from a generator that no seed reaches."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.np_random = np.random.default_rng()
        return super().reset(options=options)


class Buffered(RemoteWorldEnv):
    """Returns the same array again and again."""

    def step(self, action):
        observed, *rest = super().step(action)
        self.buffer = getattr(self, "buffer", observed["pixels"])
        self.buffer[:] = observed["pixels"]
        return {**observed, "pixels": self.buffer}, *rest


@pytest.mark.parametrize("kind", [Forgetful, Buffered])
def test_gymnasium_would_find_a_fault(open_env, kind):
    with pytest.raises(AssertionError):
        check_env(open_env(kind=kind), skip_render_check=True)


def test_frames_are_those_of_a_prediction_from_the_last_frames(address, open_env):
    env = open_env(Task(STARTS, steps=3))
    env.reset(seed=0, options={"start": 1})
    seen, rows = list(STARTS[1].frames), list(STARTS[1].states)
    with Client(address) as client:
        for action in RNG.uniform(-2, 2, (6, 3)).astype(np.float32):
            observed, *_ = env.step(action)
            context = (np.stack(seen[-4:]), np.stack(rows[-4:]), action[None])
            alone = client.predict(*context, steps=3, seed=env.prediction.seed, cache="bypass")
            assert np.array_equal(observed["pixels"], alone.frames[-1])
            assert np.array_equal(observed["state"], action)
            seen.append(observed["pixels"])
            rows.append(action)


def test_equal_seeds_give_equal_episodes_and_others_do_not(open_env):
    env = open_env()
    first = play(env, 5, 4)
    assert_same(first, play(env, 5, 4))
    assert_same(first, play(open_env(), 5, 4))
    other = [env.reset(seed=6)] + [env.step(np.zeros(2, np.float32)) for _ in range(4)]
    with pytest.raises(AssertionError):
        assert_same(first, other)


def test_a_seed_draws_the_start(open_env):
    env = open_env()
    begun = [env.reset(seed=seed)[0]["pixels"] for seed in range(20)]
    found = [[np.array_equal(frame, start.frames[-1]) for start in STARTS].index(True) for frame in begun]
    assert set(found) == {0, 1, 2}


@pytest.mark.parametrize(("asked", "horizon"), [(None, CONTRACT.horizon), (3, 3), (20, 20)])
def test_an_episode_is_truncated_at_the_horizon_and_never_terminates(open_env, asked, horizon):
    env = open_env(Task(STARTS, MOVES, horizon=asked))
    steps = play(env, 0, horizon)[1:]
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * (horizon - 1) + [True]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert [reward for _, reward, *_ in steps] == [0.0] * horizon
    assert [info["step"] for *_, info in steps] == list(range(1, horizon + 1))
    assert steps[-1][-1]["time_s"] == horizon / CONTRACT.fps
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "objective",
    [
        Objective.goal_image(GOAL, weight=2.0),
        Objective.goal_image(GOAL, metric="latent"),
        Objective.goal_state(np.ones(3, np.float32), dims=["joint_1"]),
    ],
    ids=["pixel", "latent", "state"],
)
def test_a_reward_is_minus_the_cost_of_the_frame_that_comes(address, open_env, objective):
    env = open_env(Task(STARTS, objectives=[objective], ensemble=2))
    env.reset(seed=0, options={"start": 0})
    action = np.full(3, 0.5, np.float32)
    _, reward, *_, info = env.step(action)
    with Client(address) as client:
        asked = {"objectives": [objective], "ensemble": 2, "seed": env.prediction.seed}
        scores = client.score(STARTS[0].frames, STARTS[0].states, action[None, None], **asked)
    assert reward == -scores.costs[0] != 0
    assert info["spread"] > 0


def test_the_pixel_reward_is_what_the_observed_frame_says(open_env):
    env = open_env(Task(STARTS, MOVES, [Objective.goal_image(GOAL)]))
    for observed, reward, *_ in play(env, 1, 3)[1:]:
        away = np.square(observed["pixels"].astype(np.float64) - GOAL).mean() / 255**2
        assert reward == pytest.approx(-away, rel=1e-9)


def test_an_unusual_action_is_said(open_env):
    env = open_env(Task(STARTS))
    env.reset(seed=0)
    *_, info = env.step(np.full(3, 40, np.float32))
    assert "state_out_of_range" in info["warnings"]


def test_a_frame_can_be_rendered(address, open_env):
    env = open_env(render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        env.render()
    observed, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), observed["pixels"])
    assert env.metadata["render_fps"] == CONTRACT.fps
    assert open_env().render() is None


BAD_STARTS = {
    "short": (Start(STARTS[0].frames[1:], STARTS[0].states[1:]), "at least 4 frames"),
    "size": (Start(np.zeros((4, 8, 9, 3), np.uint8), STARTS[0].states), "8 x 8, not 8 x 9"),
    "width": (Start(STARTS[0].frames, STARTS[0].states[:, :2]), "row of 3 numbers"),
    "dtype": (Start(STARTS[0].frames.astype(float), STARTS[0].states), "uint8"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_start_that_does_not_fit_the_model_is_refused_at_once(open_env, name):
    start, says = BAD_STARTS[name]
    with pytest.raises(InvalidRequest, match=says):
        open_env(Task([STARTS[0], start]))


def test_more_was_seen_than_the_model_looks_at(open_env):
    longer = Start(np.concatenate([STARTS[1].frames, STARTS[0].frames]), np.tile(STARTS[0].states, (2, 1)))
    assert_same(play(open_env(Task([longer], MOVES)), 0, 2), play(open_env(Task([STARTS[0]], MOVES)), 0, 2))


def test_what_makes_no_task_is_refused(open_env):
    for make, says in [
        (lambda: Task([]), "start"),
        (lambda: Task(STARTS, horizon=0), "horizon"),
        (lambda: open_env(Task(STARTS, camera="wrist")), "head"),
        (lambda: open_env(kind=RemoteWorldVectorEnv, num_envs=0), "num_envs"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            make()
    with pytest.raises(UnknownModel):
        open_env(Task(STARTS, model="another"))


def test_a_server_without_a_rollout_model_has_no_world():
    engine = ToyLikelihoodEngine(replace(toy_contract(tokens=toy_tokens()), capabilities=("likelihood",)))
    with (
        running_server(Settings(http={"port": 0}), given(None, engine)) as served,
        pytest.raises(InvalidRequest, match="models that predict are: none"),
    ):
        RemoteWorldEnv(served, TASK)


def test_what_cannot_be_done_changes_nothing(open_env):
    env = open_env(Task(STARTS))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(3, np.float32))
    for options in ({"start": 3}, {"start": -1}, {"end": 1}):
        with pytest.raises(InvalidRequest):
            env.reset(options=options)
    env.reset(seed=0)
    with pytest.raises(InvalidRequest, match=r"\(3,\)"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(NonFinite):
        env.step(np.full(3, np.nan, np.float32))
    assert env.step(np.zeros(3, np.float32))[-1]["step"] == 1


class Losing(httpx.HTTPTransport):
    """Loses the answers to steps while told to."""

    loses = False

    def handle_request(self, request):
        response = super().handle_request(request)
        if self.loses and request.url.path.endswith("/steps"):
            response.read()
            raise httpx.ReadError("lost")
        return response


def test_a_step_whose_answer_was_lost_has_not_been_made(address):
    transport = Losing()
    with Client(address, transport=transport) as client:
        env = RemoteWorldEnv(client, Task(STARTS))
        env.reset(seed=0, options={"start": 0})
        first, *_ = env.step(np.ones(3, np.float32))
        transport.loses = True
        with pytest.raises(TransportError):
            env.step(np.zeros(3, np.float32))
        transport.loses = False
        second, *_, info = env.step(np.full(3, 2, np.float32))
        context = np.concatenate([STARTS[0].frames, [first["pixels"]]])[-4:]
        states = np.concatenate([STARTS[0].states, [first["state"]]])[-4:]
        alone = client.predict(context, states, np.full((1, 3), 2.0, np.float32), seed=env.prediction.seed)
        env.close()

    assert info["step"] == 2
    assert np.array_equal(second["pixels"], alone.frames[-1])


def test_a_way_to_act_of_one_s_own_has_to_lead_to_a_row(open_env):
    env = open_env(Task(STARTS, lambda schema: Actions(MOVES(schema).space, lambda action, _last: action)))
    env.reset(seed=0)
    with pytest.raises(InvalidRequest, match="row of 3 numbers"):
        env.step(np.zeros(2, np.float32))


def test_closing_ends_the_session_and_leaves_a_client_that_was_given(address):
    with Client(address) as client:
        env = RemoteWorldEnv(client, TASK)
        env.reset(seed=0)
        assert sessions(address) == 1
        env.reset()
        assert sessions(address) == 1
        env.close()
        env.close()
        assert sessions(address) == 0
        assert client.ready()


def sessions(address):
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    (value,) = [line.split()[-1] for line in lines if line.startswith("foreframe_sessions ")]
    return float(value)


OBJECTIVE = [Objective.goal_image(GOAL)]
FOUR = Task(STARTS, MOVES, OBJECTIVE, horizon=3, ensemble=2)


def test_environments_side_by_side_are_those_of_gymnasium_one_after_the_other(open_env):
    together = open_env(FOUR, kind=RemoteWorldVectorEnv, num_envs=4)
    alone = SyncVectorEnv([lambda: open_env(FOUR)] * 4)
    assert together.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert together.observation_space == alone.observation_space
    assert together.action_space == alone.action_space
    assert_same(play(together, 3, 10), play(alone, 3, 10))
    alone.close()


def test_an_episode_begins_anew_with_the_step_after_its_end(open_env):
    envs = open_env(FOUR, kind=RemoteWorldVectorEnv, num_envs=2)
    steps = play(envs, 0, 5)[1:]
    assert [infos["step"].tolist() for *_, infos in steps] == [[1, 1], [2, 2], [3, 3], [0, 0], [1, 1]]
    assert [truncated.all() for _, _, _, truncated, _ in steps] == [False, False, True, False, False]
    assert not any(terminated.any() for _, _, terminated, _, _ in steps)
    assert steps[3][1].tolist() == [0, 0]
    assert all(steps[index][1].all() for index in (0, 1, 2, 4))


class Meeting(httpx.HTTPTransport):
    """Sends no step before as many are on their way as have to meet."""

    def __init__(self, count):
        super().__init__()
        self.barrier = threading.Barrier(count, timeout=PATIENCE_S)

    def handle_request(self, request):
        if request.url.path.endswith("/steps"):
            self.barrier.wait()
        return super().handle_request(request)


def test_all_environments_ask_at_the_same_time(address):
    with Client(address, transport=Meeting(8)) as client:
        envs = RemoteWorldVectorEnv(client, TASK, 8)
        envs.reset(seed=0)
        for _ in range(3):
            envs.step(np.zeros((8, 2), np.float32))
        envs.close()


def test_seeds_of_a_vector_are_one_each(open_env):
    envs = open_env(kind=RemoteWorldVectorEnv, num_envs=2)
    alike, _ = envs.reset(seed=[7, 7])
    assert np.array_equal(alike["pixels"][0], alike["pixels"][1])
    with pytest.raises(InvalidRequest, match="seeds"):
        envs.reset(seed=[1, 2, 3])


def test_an_error_in_one_environment_asks_for_a_reset_of_all(open_env):
    envs = open_env(Task(STARTS), kind=RemoteWorldVectorEnv, num_envs=2, render_mode="rgb_array")
    actions = np.zeros((2, 3), np.float32)
    with pytest.raises(ResetNeeded):
        envs.step(actions)
    envs.reset(seed=0)
    with pytest.raises(InvalidRequest, match="shape"):
        envs.step(actions[:1])
    envs.step(actions)
    actions[1] = np.inf
    with pytest.raises(NonFinite):
        envs.step(actions)
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros((2, 3), np.float32))
    envs.reset()
    observed, *_ = envs.step(np.zeros((2, 3), np.float32))
    assert np.array_equal(np.stack(envs.render()), observed["pixels"])


def test_gymnasium_makes_the_vector_too(address):
    envs = gymnasium.make_vec(register(), num_envs=3, server=address, task=TASK)
    assert isinstance(envs, RemoteWorldVectorEnv)
    observed, _ = envs.reset(seed=0)
    assert observed in envs.observation_space
    envs.close()
