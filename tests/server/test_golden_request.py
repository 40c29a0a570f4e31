"""The golden request is the same on every start, touches every half of a model, and is compared where it can be."""

import hashlib
import json
import re

import pytest
from model_toys import RestlessToyEngine

from foreframe_engines.bundle import write_manifest
from foreframe_engines.choice import name_machine
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.cache import ResultCache
from foreframe_server.calls import Call
from foreframe_server.errors import ModelFault
from foreframe_server.golden_request import GOLDEN_FILE, ask_golden, check_golden, golden_query, golden_reading
from foreframe_server.hosting import ModelStarter
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio

TRAFFIC = re.compile(
    rb"foreframe_(requests|request_seconds|stage_seconds|ensemble_members|bits_per_token|deadline|cache_events"
    rb"|recordings|rejected)_"
)
"""The series that count what was asked; others tell of the device, which works for the golden request too."""


def count_traffic(metrics):
    lines = [line for line in metrics.scrape().splitlines() if TRAFFIC.match(line) and b"_created" not in line]
    return sorted(line for line in lines if not line.endswith(b" 0.0"))


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def start(anyio_backend, metrics, tmp_path):
    """Start a model of given engines; it is stopped at the end."""
    started = []
    settings = Settings(recording={"folder": tmp_path / "recorded"})
    starter = ModelStarter(settings, metrics, ResultCache(metrics))

    async def start_model(rollout=None, likelihood=None, folder=None):
        started.append(await starter.start(OpenedEngines("toy", rollout, likelihood, folder=folder)))
        return started[-1]

    yield start_model
    for model in started:
        await model.stop(5.0)


async def test_equal_models_have_one_digest_and_each_half_counts(start):
    likelihood = ToyLikelihoodEngine()
    both = [await start(ToyRolloutEngine(likelihood.contract), ToyLikelihoodEngine()) for _ in range(2)]
    half = await start(None, ToyLikelihoodEngine())
    digests = [await check_golden(model) for model in (*both, half)]
    assert digests[0] == digests[1] != digests[2]


async def test_the_golden_request_is_no_traffic(start, metrics, tmp_path):
    likelihood = ToyLikelihoodEngine()
    model = await start(ToyRolloutEngine(likelihood.contract), likelihood)
    await check_golden(model)
    await model.stop(5.0)
    assert count_traffic(metrics) == []
    assert list((tmp_path / "recorded").iterdir()) == []


async def test_control_what_is_asked_of_the_services_is_counted_and_recorded(start, metrics, tmp_path):
    likelihood = ToyLikelihoodEngine()
    model = await start(ToyRolloutEngine(likelihood.contract), likelihood)
    call = Call("control", 0.0)
    await model.service.predict(golden_query(model.contract), call)
    await model.likelihoods.score(golden_reading(model.contract), call)
    await model.stop(5.0)
    counted = b"".join(count_traffic(metrics))
    assert all(name in counted for name in (b"ensemble_members", b"bits_per_token", b"cache_events", b"recordings"))
    assert len(list((tmp_path / "recorded").iterdir())) == 1


async def test_the_golden_frames_are_those_that_the_service_answers_with(start):
    model = await start(ToyRolloutEngine())
    answer = await model.service.predict(golden_query(model.contract), Call("same", 0.0))
    assert await ask_golden(model) == hashlib.sha256(answer.prediction.frames.tobytes()).hexdigest()


async def test_another_answer_than_before_is_a_fault(start):
    model = await start(ToyRolloutEngine())
    digest = await ask_golden(model)
    assert await check_golden(model, digest) == digest
    with pytest.raises(ModelFault, match="golden request"):
        await check_golden(model, "0" * 64)


async def test_a_model_that_never_answers_twice_alike_is_caught(start):
    with pytest.raises(ModelFault, match="golden request"):
        await check_golden(await start(RestlessToyEngine()))


async def test_a_model_that_promises_no_bytes_need_only_answer(start):
    model = await start(RestlessToyEngine())
    model.determinism = "tolerance"
    assert len(await check_golden(model, "0" * 64)) == 64


@pytest.mark.parametrize(("machine", "is_caught"), [(name_machine(), True), ("another machine", False)])
async def test_a_recorded_digest_counts_on_its_machine(start, tmp_path, machine, is_caught):
    (tmp_path / GOLDEN_FILE).write_text(json.dumps({"digests": {machine: "0" * 64}}))
    write_manifest(tmp_path)
    model = await start(ToyRolloutEngine(), folder=tmp_path)
    if is_caught:
        with pytest.raises(ModelFault, match="golden request"):
            await check_golden(model)
    else:
        await check_golden(model)
