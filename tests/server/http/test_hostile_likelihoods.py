"""Bad likelihoods and uploads get a typed problem: where, what was expected, what came, and nothing else."""

import copy
import json

import msgpack
import numpy as np
import pytest

from foreframe_engines.testing import ToyLikelihoodEngine
from foreframe_server.codec.arrays import map_for_msgpack

pytestmark = pytest.mark.anyio

MARKER = "planted-7f3a"
MAX_PROBLEM_BYTES = 4096
MAX_LAG_S = 0.05
URL = "/v1/likelihoods"
JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": "application/msgpack"}
ROW = [0.0, 0.0, 0.0]


def check_problem(reply, status, code):
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(reply.content) <= MAX_PROBLEM_BYTES
    assert MARKER not in reply.text
    assert len(problem["errors"]) <= 8
    return problem


def pack(document):
    return msgpack.packb(document, default=map_for_msgpack)


# fields · code · pointer · expected · received
FIELDS = {
    "no observation": ({"observation": ...}, "/observation", "observation or observation_id", None),
    "two observations": ({"observation_id": MARKER}, "/observation_id", "one of the two", None),
    "no target": ({"target": ...}, "/target", None, None),
    "neither frames nor ids": ({"target__ids": ...}, "/target", "frames, data or ids", None),
    "frames and ids": ({"target__frames": []}, "/target", "frames, data or ids", None),
    "an encoding of ids": ({"target__encoding": "png"}, "/target/encoding", None, None),
    "no grids": ({"target__ids": []}, "/target/ids", "1 to 12 grids of 4 ids", "0 grids"),
    "grids as text": ({"target__ids": MARKER}, "/target/ids", "1 to 12 grids of 4 ids", "no grids"),
    "too many grids": (
        {"target__ids": [[0] * 4] * 13, "target__state__values": [ROW] * 13},
        "/target/ids", "1 to 12 grids of 4 ids", "13 grids",
    ),
    "a short grid": ({"target__ids": [[0] * 3] * 3}, "/target/ids/0", "1 to 12 grids of 4 ids", "a grid of 3 ids"),
    "no list as a grid": ({"target__ids": [3, 3, 3]}, "/target/ids/0", "1 to 12 grids of 4 ids", "no grid of ids"),
    "an id beyond the vocabulary": (
        {"target__ids": [[0, 0, 0, 0], [0, 6, 0, 0], [0] * 4]}, "/target/ids/1/1", "0 to 5", "a larger number",
    ),
    "a negative id": ({"target__ids": [[-1, 0, 0, 0]] * 3}, "/target/ids/0/0", "0 to 5", "a negative number"),
    "half an id": ({"target__ids": [[0.5, 0, 0, 0]] * 3}, "/target/ids/0/0", "a whole number, 0 to 5", None),
    "an id as a boolean": ({"target__ids": [[True, 0, 0, 0]] * 3}, "/target/ids/0/0", "a whole number, 0 to 5", None),
    "a huge id": ({"target__ids": [[2**63, 0, 0, 0]] * 3}, "/target/ids/0/0", "a whole number, 0 to 5", None),
    "unknown scenario": ({"scenario": MARKER}, "/scenario", None, "text"),
    "unknown support": ({"support": MARKER}, "/support", None, "text"),
    "no k": ({"support": "top_k", "top_k": 0}, "/top_k", None, "a whole number"),
    "k beyond the vocabulary": ({"support": "top_k", "top_k": 7}, "/top_k", "1 to 6", None),
    "a huge k": ({"support": "top_k", "top_k": 10**15}, "/top_k", None, "a whole number"),
    "k as text": ({"support": "top_k", "top_k": "3"}, "/top_k", None, "text"),
    "k without its support": ({"top_k": 3}, "/top_k", "support top_k", None),
    "a definition without its support": (
        {"top_k_definition": "full_vocabulary"}, "/top_k_definition", "support top_k", None,
    ),
    "unknown definition": ({"support": "top_k", "top_k_definition": MARKER}, "/top_k_definition", None, "text"),
    "a map as a number": ({"map": 1}, "/map", None, "a whole number"),
    "unknown field": ({MARKER: 1}, "", None, None),
    "unknown field inside": ({f"target__{MARKER}": 1}, "/target", None, None),
    "deadline too short": ({"deadline_ms": 4}, "/deadline_ms", None, "a whole number"),
    "unknown priority": ({"priority": MARKER}, "/priority", None, "text"),
    "nested metadata": ({"metadata": {MARKER: {"a": 1}}}, "/metadata", None, None),
    "another schema": ({"target__state__schema": MARKER}, "/target/state/schema", "toy-joints", None),
    "units of another quantity": (
        {"target__state__units": ["m", "rad", "rad"]}, "/target/state/units/0", "rad or deg", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
async def test_a_bad_field_is_named(shared_token_client, likelihood_request, name):
    fields, pointer, expected, received = FIELDS[name]

    reply = await shared_token_client.post(URL, json=likelihood_request(**fields))

    first = check_problem(reply, 422, "invalid_request")["errors"][0]
    assert first["pointer"] == pointer
    assert expected in (None, first.get("expected"))
    assert received in (None, first.get("received"))


STATES = {
    "fewer states than grids": ([ROW] * 2, "state_dim_mismatch", "/target/state/values", "3 rows of 3 numbers"),
    "more states than grids": ([ROW] * 4, "state_dim_mismatch", "/target/state/values", "3 rows of 3 numbers"),
    "wide states": ([[0.0] * 4] * 3, "state_dim_mismatch", "/target/state/values/0", "3 rows of 3 numbers"),
    "NaN": ([ROW, [0.0, float("nan"), 0.0], ROW], "non_finite", "/target/state/values/1/1", "a finite number"),
    "beyond float32": ([ROW, ROW, [1e39, 0.0, 0.0]], "non_finite", "/target/state/values/2/0", "a finite number"),
}


@pytest.mark.parametrize("name", STATES)
async def test_states_must_fit_the_target(shared_token_client, likelihood_request, name):
    values, code, pointer, expected = STATES[name]

    request = json.dumps(likelihood_request(target__state__values=values))
    reply = await shared_token_client.post(URL, content=request, headers=JSON)

    first = check_problem(reply, 422, code)["errors"][0]
    assert (first["pointer"], first["expected"]) == (pointer, expected)


ARRAYS = {
    "ids as floats": (np.zeros((3, 4), np.float32), "/target/ids", "int32 or int64", "float32"),
    "one axis": (np.zeros(12, np.int32), "/target/ids", "1 to 12 grids of 4 ids", "an array of shape 12"),
    "wide grids": (np.zeros((3, 5), np.int64), "/target/ids", "1 to 12 grids of 4 ids", "an array of shape 3 x 5"),
    "beyond the vocabulary": (np.full((3, 4), 6, np.int64), "/target/ids/0/0", "0 to 5", "a larger number"),
}


@pytest.mark.parametrize("name", ARRAYS)
async def test_arrays_of_ids_must_fit(shared_token_client, likelihood_request, name):
    ids, pointer, expected, received = ARRAYS[name]

    reply = await shared_token_client.post(URL, content=pack(likelihood_request(target__ids=ids)), headers=MSGPACK)

    first = check_problem(reply, 422, "invalid_request")["errors"][0]
    assert (first["pointer"], first["expected"], first["received"]) == (pointer, expected, received)


CLIPS = {
    "frames of another size": ((3, 16, 16, 3), "/target", "8x8", "16x16"),
    "more frames than fit": ((13, 8, 8, 3), "/target", "1 to 12 frames", "more than 12 frames"),
}


@pytest.mark.parametrize("name", CLIPS)
async def test_frames_of_a_target_must_fit(shared_token_client, likelihood_request, name):
    shape, pointer, expected, received = CLIPS[name]
    request = likelihood_request(target__ids=..., target__frames=np.zeros(shape, np.uint8))

    reply = await shared_token_client.post(URL, content=pack(request), headers=MSGPACK)

    first = check_problem(reply, 422, "invalid_request")["errors"][0]
    assert (first["pointer"], first["expected"], first["received"]) == (pointer, expected, received)


@pytest.mark.parametrize(("count", "status"), [(1, 200), (15, 422), (16, 422), (0, 422)])
async def test_context_and_target_share_the_model_s_length(
    shared_token_client, likelihood_request, frames, count, status
):
    request = likelihood_request(observation__state__values=[ROW] * max(count, 1))
    request["observation"]["cameras"]["head"] = {"frames": frames(count=count)} if count else {"frames": []}

    reply = await shared_token_client.post(URL, content=pack(request), headers=MSGPACK)

    assert reply.status_code == status
    if count == 15:
        assert reply.json()["errors"][0] == {
            "pointer": "/target/ids",
            "message": "the ids have the wrong shape",
            "expected": "1 grids of 4 ids",
            "received": "3 grids",
        }
    if count == 16:
        assert "1 to 15 frames" in reply.json()["errors"][0]["expected"]


UPLOADS = {
    "no observation": ({"observation": ...}, 422, "invalid_request", "/observation"),
    "fewer frames than the model predicts from": (
        {"observation__cameras__head__frames": []}, 422, "invalid_request", "/observation/cameras/head/frames",
    ),
    "an unknown model": ({"model": MARKER}, 404, "unknown_model", "/model"),
    "no time": ({"ttl_s": 0}, 422, "invalid_request", "/ttl_s"),
    "too long a time": ({"ttl_s": 3601}, 422, "invalid_request", "/ttl_s"),
    "an endless time": ({"ttl_s": float("inf")}, 422, "invalid_request", "/ttl_s"),
    "a future": ({"future": {}}, 422, "invalid_request", ""),
    "NaN": (
        {"observation__state__values": [[float("nan")] * 3] * 4}, 422, "non_finite", "/observation/state/values/0/0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UPLOADS)
async def test_a_bad_upload_is_refused(shared_token_client, likelihood_request, name):
    fields, status, code, pointer = UPLOADS[name]
    request = likelihood_request(target=..., **fields)

    reply = await shared_token_client.post("/v1/observations", content=json.dumps(request), headers=JSON)

    assert check_problem(reply, status, code)["errors"][0]["pointer"] == pointer


LARGE = {
    "ids": ({"target__ids": np.zeros((500_000, 4), np.int64)}, "1 to 12 grids of 4 ids"),
    "frames": ({"target__ids": ..., "target__frames": np.zeros((2**16, 8, 8, 3), np.uint8)}, "1 to 12 frames"),
    "a context": (
        {"observation__cameras__head": {"frames": np.zeros((2**16, 8, 8, 3), np.uint8)}}, "1 to 15 frames",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
async def test_the_largest_arrays_never_block_the_loop(shared_token_client, likelihood_request, best_lag, name):
    fields, expected = LARGE[name]
    content = pack(likelihood_request(**fields))

    async def post():
        reply = await shared_token_client.post(URL, content=content, headers=MSGPACK)
        assert check_problem(reply, 422, "invalid_request")["errors"][0]["expected"] == expected

    assert len(content) > 12 * 2**20
    assert await best_lag(post) < MAX_LAG_S


class TestMutations:
    """Seeded damage to good likelihoods and uploads. Whatever comes of it, the server did not fail."""

    hostile_values = (
        None, True, -1, 2**31, 2**53, 2**63, 1.5, 1e308, float("nan"), float("inf"), "", "\0", MARKER, [], [[]],
        [None] * 20, {}, {MARKER: MARKER}, [[6] * 4] * 3, [[[0]]], b"\xff",
    )  # fmt: skip
    num_requests = 500

    def requests(self, likelihood_request):
        rng = np.random.default_rng(21)
        for index in range(self.num_requests):
            request = likelihood_request(support="top_k", top_k=2, map=True, metadata={"a": 1})
            if index % 3 == 2:
                request = {"observation": request["observation"], "ttl_s": 5}
            yield ("/v1/likelihoods", "/v1/observations")[index % 3 == 2], self.damage(rng, request)

    def damage(self, rng, request):
        request = copy.deepcopy(request)
        for _ in range(rng.integers(1, 3)):
            part = request
            while True:
                keys = list(part) if isinstance(part, dict) else list(range(len(part)))
                key = keys[rng.integers(len(keys))]
                if not isinstance(part[key], dict | list) or not part[key] or rng.random() < 0.2:
                    break
                part = part[key]
            part[key] = self.hostile_values[rng.integers(len(self.hostile_values))]
        return request

    async def count_failures(self, client, likelihood_request):
        failures = 0
        for url, request in self.requests(likelihood_request):
            reply = await client.post(url, content=pack(request), headers=MSGPACK)
            failures += reply.status_code >= 500
            if 400 <= reply.status_code < 500:
                check_problem(reply, reply.status_code, reply.json()["code"])
        return failures

    async def test_no_mutation_makes_the_server_fail(self, shared_token_client, likelihood_request):
        assert await self.count_failures(shared_token_client, likelihood_request) == 0

    async def test_control_a_failing_engine_is_counted(self, serving, make_token_app, likelihood_request):
        def fail(rows):
            raise RuntimeError("planted")

        engine = ToyLikelihoodEngine()
        async with serving(make_token_app(engine)) as client:
            engine._read_hook = fail
            assert await self.count_failures(client, likelihood_request) > 0
