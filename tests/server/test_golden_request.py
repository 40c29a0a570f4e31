"""The golden request is the same on every start, touches every half of a model, and is compared where it can be."""

import json

import pytest
from model_toys import RestlessToyEngine

from foreframe_engines.bundle import write_manifest
from foreframe_engines.choice import name_machine
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine
from foreframe_server.cache import ResultCache
from foreframe_server.errors import ModelFault
from foreframe_server.golden_request import GOLDEN_FILE, ask_golden, check_golden
from foreframe_server.hosting import ModelStarter
from foreframe_server.metrics import Metrics
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def start(anyio_backend):
    """Start a model of given engines; it is stopped at the end."""
    metrics, started = Metrics(), []
    starter = ModelStarter(Settings(), metrics, ResultCache(metrics))

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
