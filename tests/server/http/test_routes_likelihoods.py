import asyncio
import copy
import json

import msgpack
import numpy as np
import pytest

from foreframe_engines import reading as reference
from foreframe_engines.calibration import Calibration
from foreframe_engines.nats import TopKDefinition, bits_map, count_nats, top_k_cross_entropy
from foreframe_engines.surprise import calibrate_surprise
from foreframe_engines.testing import ToyLikelihoodEngine, toy_contract, toy_tokens
from foreframe_server.codec.arrays import map_for_msgpack
from foreframe_server.settings import SchedulerSettings, Settings

pytestmark = pytest.mark.anyio

URL = "/v1/likelihoods"
JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


def pack(document):
    return msgpack.packb(document, default=map_for_msgpack)


def expected_scores(frames, request, *, scenario="teacher_forced", top_k=None):
    """What the plain loop gives for the toy's request."""
    engine = ToyLikelihoodEngine()
    states = np.array(request["observation"]["state"]["values"], np.float32)
    context = reference.read_history(engine, engine.tokenize(frames()), states)
    ids = np.array(request["target"]["ids"])
    future = np.array(request["target"]["state"]["values"], np.float32)
    if scenario == "teacher_forced":
        return reference.teacher_forced(engine, context, ids, future, top_k)
    return reference.greedy_rollout(engine, context, future, ids, top_k)


async def test_json_in_gives_every_field_of_the_reply(token_client, likelihood_request, frames):
    request = likelihood_request(map=True, support="top_k", top_k=2, client_time=1.5, metadata={"run": "a"})

    reply = await token_client.post(URL, json=request)

    body = reply.json()
    assert reply.status_code == 200
    assert set(body) == {
        "id", "model", "revision", "scenario", "support", "nats_total", "bits_total", "nats_per_token",
        "bits_per_token", "bits_per_frame", "grid_frames", "bits_per_pixel", "tokens", "topk_cross_entropy",
        "surprise_per_frame", "map", "timings_ms", "deadline_met", "warnings", "client_time", "metadata",
    }  # fmt: skip
    nats = count_nats(expected_scores(frames, request), num_pixels=3 * 8 * 8)
    assert (body["nats_total"], body["bits_total"]) == (nats.nats_total, nats.bits_total)
    assert (body["nats_per_token"], body["bits_per_pixel"]) == (nats.nats_per_token, nats.bits_per_pixel)
    assert body["bits_per_token"] == nats.bits_total / 12
    assert body["bits_per_frame"] == list(nats.bits_per_grid)
    assert (body["tokens"], body["grid_frames"]) == (12, [[1], [2], [3]])
    assert (body["model"], body["deadline_met"], body["client_time"]) == ("toy", True, 1.5)
    assert np.shape(body["map"]) == (3, 2, 2)
    assert np.allclose(np.array(body["map"]).sum(axis=(1, 2)), body["bits_per_frame"])
    assert set(body["timings_ms"]) == {"receive", "decode", "queue", "read", "respond", "total"}
    assert "read;dur=" in reply.headers["server-timing"]


@pytest.mark.parametrize("scenario", ["teacher_forced", "autoregressive"])
@pytest.mark.parametrize("definition", TopKDefinition)
async def test_the_cross_entropy_is_the_one_that_was_named(
    shared_token_client, likelihood_request, frames, scenario, definition
):
    request = likelihood_request(scenario=scenario, support="top_k", top_k=3, top_k_definition=definition.value)

    body = (await shared_token_client.post(URL, json=request)).json()

    scores = expected_scores(frames, request, scenario=scenario, top_k=3)
    found, wanted = body["topk_cross_entropy"], top_k_cross_entropy(scores, 3, definition, 6)
    assert body["nats_total"] == count_nats(scores, num_pixels=192).nats_total
    assert (found["k"], found["definition"], found["value"]) == (3, definition.value, wanted.value)
    assert (found["escape_nats"], found["escape_mass"]) == (wanted.escape_nats, wanted.escape_mass)
    assert found["num_outside"] == wanted.num_outside
    assert found["left_out"] == (wanted.num_outside if definition is TopKDefinition.TOPK_RENORMALISED else 0)


async def test_an_absent_k_is_the_default_or_the_whole_vocabulary(shared_token_client, likelihood_request):
    body = (await shared_token_client.post(URL, json=likelihood_request(support="top_k"))).json()

    assert (body["topk_cross_entropy"]["k"], body["topk_cross_entropy"]["definition"]) == (6, "topk_renormalised")
    assert body["topk_cross_entropy"]["num_outside"] == 0
    assert body["topk_cross_entropy"]["value"] == pytest.approx(body["nats_per_token"], rel=1e-6)


async def test_msgpack_and_json_of_one_request_give_equal_numbers(token_client, likelihood_request, frames):
    plain = likelihood_request(map=True)
    arrays = copy.deepcopy(plain)
    arrays["observation"]["cameras"]["head"] = {"frames": frames()}
    arrays["target"]["ids"] = np.array(plain["target"]["ids"], np.int32)
    arrays["target"]["state"]["values"] = np.array(plain["target"]["state"]["values"], np.float32)

    text = (await token_client.post(URL, json=plain)).json()
    packed = await token_client.post(URL, content=pack(arrays), headers=MSGPACK)

    assert packed.headers["content-type"] == "application/msgpack"
    body = msgpack.unpackb(packed.content)
    assert body["bits_per_frame"] == text["bits_per_frame"]
    bits = np.frombuffer(body["map"][b"data"], body["map"][b"dtype"]).reshape(body["map"][b"shape"])
    assert bits.dtype == np.float32
    assert bits.tolist() == text["map"]
    assert np.array_equal(bits.reshape(3, 4), bits_map(expected_scores(frames, plain)).astype(np.float32))


async def test_frames_of_a_target_count_as_their_ids(token_client, likelihood_request, frames, picture, base64_of):
    seen = frames(5, count=3)
    as_ids = likelihood_request(target__ids=ToyLikelihoodEngine().tokenize(seen).tolist())
    pictures = [base64_of(picture(frame)) for frame in seen]
    as_pictures = likelihood_request(target__ids=..., target__encoding="png", target__frames=pictures)
    raw = {"encoding": "raw_rgb8", "width": 8, "height": 8, "data": base64_of(seen.tobytes())}
    as_bytes = likelihood_request(target__ids=...)
    as_bytes["target"] |= raw

    replies = [(await token_client.post(URL, json=each)).json() for each in (as_ids, as_pictures, as_bytes)]

    assert replies[0]["bits_per_frame"] == replies[1]["bits_per_frame"] == replies[2]["bits_per_frame"]


async def test_windows_of_several_frames_say_which_frames_a_grid_stands_for(
    serving, make_token_app, likelihood_request, frames
):
    tokens = toy_tokens(window_frames=5, window_grids=3, max_grids=9)
    engine = ToyLikelihoodEngine(toy_contract(tokens=tokens))
    states = [[0.1 * row, 0.2, 0.3] for row in range(5)]
    request = likelihood_request(target__state__values=states, observation__state__values=states)
    request["observation"]["cameras"]["head"] = {"frames": frames(count=5)}

    async with serving(make_token_app(engine)) as client:
        body = (await client.post(URL, content=pack(request), headers={"content-type": "application/msgpack"})).json()
        request["observation"]["cameras"]["head"] = {"frames": frames(count=4)}
        part = await client.post(URL, content=pack(request), headers={"content-type": "application/msgpack"})

    assert body["grid_frames"] == [[1], [2, 3], [4, 5]]
    assert [surprise["frames"] for surprise in body["surprise_per_frame"]] == body["grid_frames"]
    assert len(body["bits_per_frame"]) == 3
    assert body["bits_per_pixel"] == pytest.approx(body["bits_total"] / (5 * 64))
    assert part.status_code == 422
    assert part.json()["errors"][0]["expected"] == "5, 10 frames"


class TestSurprise:
    async def test_is_placed_when_the_model_is_calibrated(self, serving, make_token_app, likelihood_request):
        calibration = calibrate_surprise([2.0, 4.0, 6.0, 8.0])
        async with serving(
            make_token_app(ToyLikelihoodEngine(), calibration=Calibration(surprise=calibration))
        ) as client:
            body = (await client.post(URL, json=likelihood_request())).json()
            model = (await client.get("/v1/models/toy")).json()

        placed = [calibration.surprise(bits) for bits in body["bits_per_frame"]]
        assert [(each["z"], each["quantile"]) for each in body["surprise_per_frame"]] == [
            (surprise.z, surprise.quantile) for surprise in placed
        ]
        assert [each["bits"] for each in body["surprise_per_frame"]] == body["bits_per_frame"]
        assert body["warnings"] == []
        assert model["tokens"]["is_calibrated"] is True

    async def test_is_null_with_a_warning_when_not(self, token_client, likelihood_request):
        body = (await token_client.post(URL, json=likelihood_request())).json()

        assert {(each["z"], each["quantile"]) for each in body["surprise_per_frame"]} == {(None, None)}
        assert [warning["code"] for warning in body["warnings"]] == ["uncalibrated"]


async def test_states_out_of_range_are_served_with_a_warning(token_client, likelihood_request):
    request = likelihood_request(target__state__values=[[0.0, 9.0, 0.0]] * 3)

    body = (await token_client.post(URL, json=request)).json()

    warned = {(warning["code"], warning["pointer"]) for warning in body["warnings"]}
    assert ("state_out_of_range", "/target/state/values/0/1") in warned


class TestCompany:
    """The same answer alone, among others, in any order, and from an observation that was uploaded before."""

    def requests(self, likelihood_request):
        return [
            likelihood_request(target__ids=[[(seed + place) % 6 for place in range(4)]] * 3, scenario=scenario)
            for seed in range(4)
            for scenario in ("teacher_forced", "autoregressive")
        ]

    async def ask(self, client, requests):
        replies = await asyncio.gather(*(client.post(URL, json=request) for request in requests))
        return [reply.json()["bits_per_frame"] for reply in replies]

    async def test_nothing_changes_an_answer(self, token_client, likelihood_request):
        requests = self.requests(likelihood_request)
        alone = [(await self.ask(token_client, [request]))[0] for request in requests]
        upload = await token_client.post("/v1/observations", json={"observation": requests[0]["observation"]})
        stored = [
            {**request, "observation": ..., "observation_id": upload.json()["observation_id"]} for request in requests
        ]
        for request in stored:
            del request["observation"]

        assert await self.ask(token_client, requests) == alone
        assert await self.ask(token_client, requests[::-1]) == alone[::-1]
        assert await self.ask(token_client, stored) == alone
        assert len({tuple(bits) for bits in alone}) == len(alone)


class TestDeadlinesAndDisconnects:
    @pytest.mark.parametrize(
        ("field", "header", "outcome"),
        [(None, None, 200), (600_000, "0", 504), (600_000, "600000", 200), (None, "0", 504)],
    )
    async def test_the_earliest_deadline_wins(self, token_client, likelihood_request, field, header, outcome):
        request = likelihood_request() if field is None else likelihood_request(deadline_ms=field)
        reply = await token_client.post(URL, json=request, headers={} if header is None else {"x-deadline-ms": header})

        assert reply.status_code == outcome

    async def test_a_client_that_leaves_ends_its_work(
        self, token_app, token_client, likelihood_engine, likelihood_request
    ):
        likelihood_engine.calls.clear()
        body = json.dumps(likelihood_request()).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
        sent = []

        async def receive():
            return messages.pop(0) if len(messages) > 1 else messages[0]

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": URL, "raw_path": URL.encode(),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "query_string": b"", "scheme": "http", "root_path": "",
        }  # fmt: skip
        await token_app(scope, receive, send)

        assert sent[0]["status"] == 499
        assert likelihood_engine.calls["read"] == 0


async def test_more_work_than_may_wait_is_refused_with_a_time(
    serving, make_token_app, likelihood_request, anyio_backend
):
    import threading  # noqa: PLC0415

    entered, go_on = threading.Event(), threading.Event()
    go_on.set()

    def hold(rows):
        if not go_on.is_set():
            entered.set()
            assert go_on.wait(20)

    settings = Settings(scheduler=SchedulerSettings(max_pending_read_s=1e-9))
    async with serving(make_token_app(ToyLikelihoodEngine(read_hook=hold), settings=settings)) as client:
        go_on.clear()
        first = asyncio.create_task(client.post(URL, json=likelihood_request()))
        assert await asyncio.to_thread(entered.wait, 20)
        refused = await client.post(URL, json=likelihood_request())
        go_on.set()
        assert (await first).status_code == 200

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.json()["retry_after_ms"] >= 1
    assert refused.headers["retry-after"] == "1"


async def test_a_model_without_tokens_has_no_likelihoods(client, likelihood_request):
    reply = await client.post(URL, json=likelihood_request())

    assert (reply.status_code, reply.json()["code"]) == (409, "capability_missing")
    assert (await client.get("/v1/models/toy")).json()["tokens"] is None


async def test_a_model_that_fails_is_a_problem_without_its_words(serving, make_token_app, likelihood_request):
    engine = ToyLikelihoodEngine()

    def fail(rows):
        raise RuntimeError("planted-words at 0x7f00")

    async with serving(make_token_app(engine)) as client:
        engine._read_hook = fail
        reply = await client.post(URL, json=likelihood_request())

    assert (reply.status_code, reply.json()["code"]) == (500, "model_fault")
    assert "planted" not in reply.text


async def test_pictures_are_no_reply_of_a_likelihood(token_client, likelihood_request):
    reply = await token_client.post(URL, json=likelihood_request(), headers={"accept": "image/png"})

    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media")
    assert reply.json()["errors"][0]["expected"] == "application/json, application/msgpack"


async def test_bits_are_measured(token_client, likelihood_request):
    body = (await token_client.post(URL, json=likelihood_request())).json()

    text = (await token_client.get("/metrics")).text
    assert "foreframe_bits_per_token_count 1.0" in text
    assert f"foreframe_bits_per_token_sum {body['bits_per_token']}" in text
    assert 'foreframe_stage_seconds_count{stage="read"} 1.0' in text
    assert 'foreframe_requests_total{code="ok",route="/v1/likelihoods"} 1.0' in text
