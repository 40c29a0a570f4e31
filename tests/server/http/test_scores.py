import base64
import copy
import json

import msgpack
import numpy as np
import pytest

from foreframe_engines import sample
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_engines.types import EnsembleSpec, Query, Reducer, Sampling, Strategy
from foreframe_server.app import create_app
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.opening import given
from foreframe_server.settings import LimitSettings, Settings

pytestmark = pytest.mark.anyio

URL = "/v1/scores"
MARKER = "planted-7f3a"
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}
PLANS = np.random.default_rng(0).standard_normal((4, 8, 3)).astype(np.float32)


@pytest.fixture
def image(frames, picture, base64_of):
    return {"encoding": "png", "data": base64_of(picture(frames(3)[0]))}


@pytest.fixture
def score_request(toy_request, image):
    """A scoring that the toy answers; fields as of `toy_request`."""

    def build(**fields):
        objectives = [{"kind": "goal_image", "params": {"image": image}}]
        return toy_request(
            **{"future": ..., "candidates": {"values": PLANS.tolist()}, "objectives": objectives} | fields
        )

    return build


def objective(kind, **params):
    return {"objectives": [{"kind": kind, "params": params}]}


def plain(frames, plan, size=1):
    states = np.concatenate([[[0.1 * row, 0.2, 0.3] for row in range(4)], plan]).astype(np.float32)
    sampling = Sampling(Strategy.SAMPLE, 2, 7)
    return sample(ToyRolloutEngine(), Query("toy", frames(), states, (8,), sampling, EnsembleSpec(size, Reducer.MEAN)))


async def test_json_in_gives_every_field_of_the_reply(shared_token_client, score_request, frames):
    request = score_request(
        ensemble={"size": 3}, candidates__ids=["a", "b", "c", "d"], client_time=1.5, metadata={"run": "a"},
        constraints=[{"kind": "spread", "max": 0.5}], **{"return": {"top_n": 2, "frames": "last", "encoding": "raw"}},
    )  # fmt: skip

    reply = await shared_token_client.post(URL, json=request)

    body = reply.json()
    assert reply.status_code == 200
    assert set(body) == {
        "id", "model", "revision", "direction", "best_index", "rank_stability", "seed", "strategy", "members",
        "candidates", "scored", "deadline_met", "timings_ms", "warnings", "client_time", "metadata",
    }  # fmt: skip
    assert (body["model"], body["direction"], body["seed"], body["members"]) == ("toy", "minimize", 7, 3)
    assert (body["scored"], body["deadline_met"], body["client_time"]) == (4, True, 1.5)
    assert 0 < body["rank_stability"] <= 1
    candidates = body["candidates"]
    assert [candidate["id"] for candidate in candidates] == ["a", "b", "c", "d"]
    assert sorted(candidate["rank"] for candidate in candidates) == [1, 2, 3, 4]
    assert candidates[body["best_index"]]["rank"] == 1
    for candidate, plan in zip(candidates, PLANS, strict=True):
        prediction = plain(frames, plan, size=3)
        cost = np.mean((prediction.frames[0].astype(np.float64) - frames(3)[0]) ** 2) / 255**2
        assert candidate["cost"] == pytest.approx(cost)
        assert candidate["terms"] == {"goal_image": candidate["cost"]}
        spread = prediction.spread_per_frame[0]
        assert candidate["constraints"] == [{"kind": "spread", "value": spread, "max": 0.5, "satisfied": True}]
        assert candidate["uncertainty"] == {"frames": [8], "spread_per_frame": [spread], "members": 3}
        assert (candidate["status"], candidate["feasible"], candidate["reason"]) == ("ok", True, None)
        if candidate["rank"] > 2:
            assert candidate["frames"] is None
        else:
            (frame,) = candidate["frames"]
            assert (frame["index"], frame["t_s"]) == (8, 0.8)
            assert base64.b64decode(frame["image"]["data"]) == prediction.frames[0].tobytes()


async def test_the_stages_are_in_the_header_and_in_the_metrics(token_client, score_request):
    reply = await token_client.post(URL, json=score_request())

    stages = {part.split(";")[0] for part in reply.headers["server-timing"].split(", ")}
    assert stages == set(reply.json()["timings_ms"])
    assert 'foreframe_stage_seconds_count{stage="evaluate"} 1.0' in (await token_client.get("/metrics")).text


async def test_msgpack_takes_arrays_and_costs_the_same(shared_token_client, score_request, frames):
    request = score_request(**objective("goal_image", image={"data": frames(3)[0]}, metric="latent"))
    request["objectives"].append({"kind": "goal_state", "params": {"values": np.zeros(3, np.float32)}})
    text = copy.deepcopy(request)
    text["objectives"][0]["params"]["image"] = {
        "encoding": "raw_rgb8", "width": 8, "height": 8, "data": base64.b64encode(frames(3)[0].tobytes()).decode(),
    }  # fmt: skip
    text["objectives"][1]["params"]["values"] = [0, 0, 0]
    request["candidates"]["values"] = PLANS

    packed = await shared_token_client.post(URL, content=pack(request), headers=MSGPACK)
    plain_text = await shared_token_client.post(URL, json=text)

    assert packed.headers["content-type"] == "application/msgpack"
    costs = [candidate["cost"] for candidate in msgpack.unpackb(packed.content)["candidates"]]
    assert costs == [candidate["cost"] for candidate in plain_text.json()["candidates"]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_candidate_that_is_not_finite_is_invalid_beside_others(shared_token_client, score_request, value):
    whole = await shared_token_client.post(URL, json=score_request())
    plans = PLANS.copy()
    plans[1, 2, 0] = value

    reply = await shared_token_client.post(URL, content=pack(score_request(candidates__values=plans)), headers=MSGPACK)

    body = msgpack.unpackb(reply.content)
    assert [candidate["status"] for candidate in body["candidates"]] == ["ok", "invalid", "ok", "ok"]
    assert body["scored"] == 3
    faulty = body["candidates"][1]
    assert faulty["reason"].startswith("/candidates/values/1/2/0 ")
    assert [faulty[name] for name in ("cost", "terms", "rank", "constraints", "feasible")] == [None] * 5
    costs = [candidate["cost"] for candidate in whole.json()["candidates"]]
    assert [candidate["cost"] for candidate in body["candidates"]] == [costs[0], None, *costs[2:]]


async def test_an_absent_seed_comes_back_and_repeats_the_costs(shared_token_client, score_request):
    first = (await shared_token_client.post(URL, json=score_request(sampling={}))).json()
    again = (await shared_token_client.post(URL, json=score_request(sampling={"seed": first["seed"]}))).json()

    assert again["candidates"] == first["candidates"]


async def test_an_uploaded_observation_costs_the_same_and_an_expired_one_is_gone(shared_token_client, score_request):
    request = score_request(**objective("likelihood"))
    held = await shared_token_client.post("/v1/observations", json={"observation": request["observation"]})
    by_id = {**request, "observation_id": held.json()["observation_id"]}
    del by_id["observation"]

    first, second = [await shared_token_client.post(URL, json=each) for each in (request, by_id)]
    gone = await shared_token_client.post(URL, json={**by_id, "observation_id": "never-there"})

    assert second.json()["candidates"] == first.json()["candidates"]
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")


async def test_a_plan_that_leaves_the_training_data_is_scored_with_a_warning(shared_token_client, score_request):
    plans = PLANS.copy()
    plans[2, 5, 1] = 9.0

    reply = await shared_token_client.post(URL, json=score_request(candidates__values=plans.tolist()))

    (warning,) = reply.json()["warnings"]
    assert (warning["code"], warning["pointer"], warning["sigma"]) == (
        "state_out_of_range", "/candidates/values/2/5/1", 9.0,
    )  # fmt: skip


async def test_a_best_candidate_that_breaks_a_constraint_is_told(shared_token_client, score_request):
    reply = await shared_token_client.post(
        URL, json=score_request(constraints=[{"kind": "smoothness", "max": -1.0}], **objective("smoothness"))
    )

    body = reply.json()
    assert [warning["code"] for warning in body["warnings"]] == ["none_feasible"]
    assert not any(candidate["feasible"] for candidate in body["candidates"])
    assert body["candidates"][body["best_index"]]["rank"] == 1


@pytest.mark.parametrize(("field", "header"), [(None, "0"), (600_000, "0")])
async def test_a_deadline_that_has_passed_is_an_error(shared_token_client, score_request, field, header):
    request = score_request() if field is None else score_request(deadline_ms=field)

    reply = await shared_token_client.post(URL, json=request, headers={"x-deadline-ms": header})

    assert (reply.status_code, reply.json()["code"]) == (504, "deadline_exceeded")


async def test_pictures_alone_cannot_be_a_ranking(shared_token_client, score_request):
    reply = await shared_token_client.post(URL, json=score_request(), headers={"accept": "image/png"})

    assert reply.status_code == 415


async def test_a_model_without_tokens_scores_what_it_can(shared_client, score_request):
    sound = await shared_client.post(URL, json=score_request())
    likelihood = await shared_client.post(URL, json=score_request(**objective("likelihood")))

    assert sound.status_code == 200
    assert (likelihood.status_code, likelihood.json()["code"]) == (409, "capability_missing")
    assert likelihood.json()["errors"][0]["pointer"] == "/objectives/0/kind"


async def test_limits_say_how_many_candidates_there_may_be(serving, score_request):
    settings = Settings(limits=LimitSettings(max_candidates=3))
    async with serving(create_app(settings, given(ToyRolloutEngine()))) as client:
        limits = (await client.get("/v1/limits")).json()
        reply = await client.post(URL, json=score_request())

    assert limits["max_candidates"] == 3
    (reason,) = reply.json()["errors"]
    assert (reason["pointer"], reason["expected"], reason["received"]) == (
        "/candidates/values", "1 to 3 candidates", "4 candidates",
    )  # fmt: skip


async def test_a_short_observation_is_enough_for_the_token_model_alone(shared_token_client, score_request, frames):
    seen = {"cameras": {"head": {"frames": frames(count=2)}}, "state": {"values": np.zeros((2, 3), np.float32)}}

    sound = score_request(observation=seen, **objective("likelihood"))
    short = score_request(observation=seen)
    replies = [
        await shared_token_client.post(URL, content=pack(request), headers={"content-type": "application/msgpack"})
        for request in (sound, short)
    ]

    assert [reply.status_code for reply in replies] == [200, 422]
    (reason,) = replies[1].json()["errors"]
    assert (reason["expected"], reason["received"]) == ("4 to 15 frames", "2 frames")


async def test_windows_of_frames_ask_for_whole_ones(serving, score_request, make_token_app):
    contract = toy_contract(tokens=toy_tokens(window_frames=4, window_grids=2))
    async with serving(make_token_app(ToyLikelihoodEngine(contract))) as client:
        sound = await client.post(URL, json=score_request(**objective("likelihood")))
        part = await client.post(
            URL, json=score_request(candidates__values=PLANS[:, :6].tolist(), **objective("likelihood"))
        )

    assert sound.status_code == 200
    (reason,) = part.json()["errors"]
    assert (reason["pointer"], reason["expected"]) == (
        "/candidates/values/0",
        "4, 8, 12, 16, 20, 24, 28 rows of 3 numbers",
    )


def plans(count=1, horizon=8, dim=3):
    return np.zeros((count, horizon, dim)).tolist()


def picture_of(**fields):
    return {"objectives": [{"kind": "goal_image", "params": {"image": fields}}]}


RAW = base64.b64encode(bytes(8 * 8 * 3)).decode()
NINE = base64.b64encode(bytes(9 * 8 * 3)).decode()

# fields to set in a request that is otherwise good · code · pointer · the limit that is told · what was received
FIELDS = {
    "too many candidates": (
        {"candidates__values": plans(65)}, "invalid_request", "/candidates/values", "1 to 64 candidates",
        "65 candidates",
    ),
    "no candidates": ({"candidates__values": []}, "invalid_request", "/candidates/values", "1 to 64 candidates", None),
    "too long for frames": (
        {"candidates__values": plans(1, 9)}, "state_dim_mismatch", "/candidates/values/0", "1 to 8 rows of 3 numbers",
        "9 rows",
    ),
    "too long for tokens": (
        {"candidates__values": plans(1, 13), **objective("likelihood")}, "state_dim_mismatch", "/candidates/values/0",
        "1 to 12 rows of 3 numbers", "13 rows",
    ),
    "no rows": (
        {"candidates__values": [[]]}, "state_dim_mismatch", "/candidates/values/0", "1 to 8 rows of 3 numbers", None,
    ),
    "wrong width": (
        {"candidates__values": plans(1, 8, 4)}, "state_dim_mismatch", "/candidates/values/0/0", None, None,
    ),
    "unequal lengths": (
        {"candidates__values": plans(1, 8) + plans(1, 7)}, "state_dim_mismatch", "/candidates/values/1",
        "8 rows of 3 numbers", "7 rows",
    ),
    "two axes": ({"candidates__values": [[0.0, 0.0, 0.0]]}, "state_dim_mismatch", "/candidates/values/0/0", None, None),
    "null": ({"candidates__values": [[[0.0, None, 0.0]]]}, "invalid_request", "/candidates/values/0/0/1", None, None),
    "text": ({"candidates__values": MARKER}, "state_dim_mismatch", "/candidates/values", None, None),
    "nothing is finite": (
        {"candidates__values": [[[float("nan")] * 3], [[0.0, float("inf"), 0.0]]]}, "non_finite",
        "/candidates/values/0/0/0", "a finite number", None,
    ),
    "ids twice": (
        {"candidates__ids": ["a", "b", "a", "d"]}, "invalid_request", "/candidates/ids/2", "each id once", None,
    ),
    "too few ids": ({"candidates__ids": ["a"]}, "invalid_request", "/candidates/ids", "4 ids", "1 ids"),
    "ids that are numbers": ({"candidates__ids": [1, 2, 3, 4]}, "invalid_request", "/candidates/ids/0", None, None),
    "no objectives": ({"objectives": []}, "invalid_request", "/objectives", None, None),
    "unknown objective": ({"objectives": [{"kind": MARKER}]}, "invalid_request", "/objectives/0/kind", None, None),
    "unknown constraint": (
        {"constraints": [{"kind": MARKER, "max": 1}]}, "invalid_request", "/constraints/0/kind", None, None,
    ),
    "a constraint without a bound": (
        {"constraints": [{"kind": "smoothness"}]}, "invalid_request", "/constraints/0/max", None, None,
    ),
    "a weight of zero": (
        {"objectives": [{"kind": "smoothness", "weight": 0}]}, "invalid_request", "/objectives/0/weight", None, None,
    ),
    "a weight of NaN": (
        {"objectives": [{"kind": "smoothness", "weight": float("nan")}]}, "invalid_request", "/objectives/0/weight",
        None, None,
    ),
    "a huge weight": (
        {"objectives": [{"kind": "smoothness", "weight": 1e300}]}, "invalid_request", "/objectives/0/weight", None,
        None,
    ),
    "no goal image": (objective("goal_image"), "invalid_request", "/objectives/0/params/image", None, None),
    "a goal of another size": (
        picture_of(encoding="raw_rgb8", width=9, height=8, data=NINE), "invalid_request", "/objectives/0/params/image",
        "8x8", "9x8",
    ),
    "a goal of too few bytes": (
        picture_of(encoding="raw_rgb8", width=9, height=8, data=RAW), "invalid_request",
        "/objectives/0/params/image/data", None, None,
    ),
    "a goal that is no picture": (
        picture_of(encoding="png", data=RAW), "invalid_request", "/objectives/0/params/image/data", "8x8 RGB", None,
    ),
    "a goal without an encoding": (
        picture_of(data=RAW), "invalid_request", "/objectives/0/params/image/encoding", None, None,
    ),
    "a goal as a clip": (
        picture_of(encoding="mp4", data=RAW), "invalid_request", "/objectives/0/params/image/encoding", None, None,
    ),
    "an unknown metric": (
        objective("goal_image", metric=MARKER), "invalid_request", "/objectives/0/params/metric", None, None,
    ),
    "a frame beyond the plan": (
        objective("goal_image", frame=9, image={"encoding": "raw_rgb8", "width": 8, "height": 8, "data": RAW}),
        "invalid_request", "/objectives/0/params/frame", "1..8", "9",
    ),
    "no goal state": (objective("goal_state"), "invalid_request", "/objectives/0/params/values", None, None),
    "a goal state of another width": (
        objective("goal_state", values=[0, 0]), "state_dim_mismatch", "/objectives/0/params/values", None,
        "a row of 2 values",
    ),
    "a goal state of NaN": (
        objective("goal_state", values=[0, float("nan"), 0]), "non_finite", "/objectives/0/params/values/1", None, None,
    ),
    "an unknown dimension": (
        objective("goal_state", values=[0, 0, 0], dims=["joint_0", MARKER]), "invalid_request",
        "/objectives/0/params/dims/1", "0..2, or a name of the state schema", None,
    ),
    "a dimension beyond the last": (
        objective("goal_state", values=[0, 0, 0], dims=[3]), "invalid_request", "/objectives/0/params/dims/0", None,
        None,
    ),
    "a dimension twice": (
        objective("goal_state", values=[0, 0, 0], dims=[1, "joint_1"]), "invalid_request",
        "/objectives/0/params/dims/1", "each once", None,
    ),
    "no dimension": (
        objective("goal_state", values=[0, 0, 0], dims=[]), "invalid_request", "/objectives/0/params/dims", None, None,
    ),
    "a parameter of another kind": (
        objective("likelihood", frame=1), "invalid_request", "/objectives/0/params/frame", "no parameters", None,
    ),
    "an unknown parameter": (objective("spread", sharpness=1), "invalid_request", "/objectives/0/params", None, None),
    "a spread of one": (
        objective("spread"), "invalid_request", "/objectives/0/kind", "ensemble.size of at least 2", "1",
    ),
    "smoothness of one row": (
        {"candidates__values": plans(1, 1), **objective("smoothness")}, "invalid_request", "/objectives/0/kind",
        "at least 2 rows a candidate", "1",
    ),
    "a negative top_n": ({"return": {"top_n": -1}}, "invalid_request", "/return/top_n", None, None),
    "a top_n of more than there are": ({"return": {"top_n": 5}}, "invalid_request", "/return/top_n", "0..4", "5"),
    "frames as a clip": ({"return": {"encoding": "mp4"}}, "invalid_request", "/return/encoding", None, None),
    "an ensemble of a posterior mean": (
        {"ensemble": {"size": 2}, "sampling": {"strategy": "posterior_mean"}}, "invalid_request", "/ensemble/size",
        "1", None,
    ),
    "too many steps": ({"sampling": {"steps": 51}}, "invalid_request", "/sampling/steps", "1..50", None),
    "guidance": ({"sampling": {"guidance": 2.0}}, "invalid_request", "/sampling/guidance", "1.0", None),
    "an unknown seed policy": ({"seed_policy": MARKER}, "invalid_request", "/seed_policy", None, None),
    "an unknown field": ({MARKER: 1}, "invalid_request", "", None, None),
    "no observation": ({"observation": ...}, "invalid_request", "/observation", None, None),
    "two observations": ({"observation_id": "a"}, "invalid_request", "/observation_id", None, None),
    "too short a deadline": ({"deadline_ms": 4}, "invalid_request", "/deadline_ms", None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
async def test_bad_input_is_refused_with_its_pointer_and_limit(shared_token_client, score_request, name):
    fields, code, pointer, expected, received = FIELDS[name]

    reply = await shared_token_client.post(
        URL, content=json.dumps(score_request(**fields)), headers={"content-type": "application/json"}
    )

    body = reply.json()
    assert (reply.status_code, body["code"]) == (422, code), body
    reason = body["errors"][0]
    assert reason["pointer"] == pointer
    assert expected is None or reason["expected"] == expected
    assert received is None or reason["received"] == received
    assert MARKER not in reply.text
    assert len(reply.content) <= 4096


async def test_the_table_of_bad_input_starts_from_a_good_request(shared_token_client, score_request):
    """The planted fault of the test above: what it starts from must be answered."""
    assert (await shared_token_client.post(URL, json=score_request())).status_code == 200


def array_of_candidates(shape, dtype=np.float32):
    return {"candidates__values": np.zeros(shape, dtype)}


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        (array_of_candidates((8, 3)), "state_dim_mismatch", "/candidates/values"),
        (array_of_candidates((65, 8, 3)), "invalid_request", "/candidates/values"),
        (array_of_candidates((2, 9, 3)), "state_dim_mismatch", "/candidates/values/0"),
        (array_of_candidates((2, 8, 4)), "state_dim_mismatch", "/candidates/values/0"),
        (array_of_candidates((2, 8, 3), np.int32), "invalid_request", "/candidates/values/0"),
        ({"candidates__values": np.full((2, 8, 3), np.nan, np.float32)}, "non_finite", "/candidates/values/0/0/0"),
        (picture_of(data=np.zeros((9, 8, 3), np.uint8)), "invalid_request", "/objectives/0/params/image"),
        (picture_of(data=np.zeros((8, 8), np.uint8)), "invalid_request", "/objectives/0/params/image/data"),
        (picture_of(data=np.zeros((8, 8, 3), np.float32)), "invalid_request", "/objectives/0/params/image/data"),
        (
            objective("goal_state", values=np.zeros((1, 3), np.float32)),
            "state_dim_mismatch",
            "/objectives/0/params/values",
        ),
        (objective("goal_state", values=np.zeros(3, np.int32)), "invalid_request", "/objectives/0/params/values"),
    ],
)
async def test_arrays_that_do_not_fit_are_refused(shared_token_client, score_request, fields, code, pointer):
    reply = await shared_token_client.post(
        URL, content=pack(score_request(**fields)), headers={"content-type": "application/msgpack"}
    )

    body = reply.json()
    assert (reply.status_code, body["code"], body["errors"][0]["pointer"]) == (422, code, pointer)


def pack(document):
    return msgpack.packb(document, default=map_for_msgpack)
