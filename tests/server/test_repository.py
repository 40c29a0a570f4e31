"""Models are loaded beside those that serve, tried, swapped in, and let go once nobody holds them."""

import asyncio
import contextlib
import time

import pytest
import structlog

from foreframe_server.cache import ResultCache
from foreframe_server.errors import InvalidRequest, ModelFault, NotReady, UnknownModel
from foreframe_server.hosting import ModelStarter
from foreframe_server.loaded_models import LoadedModels
from foreframe_server.metrics import Metrics
from foreframe_server.repository import ModelRepository, ModelState

pytestmark = pytest.mark.anyio
PATIENCE_S = 20


class Running:
    """A repository of a toy folder, and the models that it keeps."""

    def __init__(self, toy_folder, **models):
        settings, self.metrics = toy_folder.settings(**models), Metrics()
        self.models = LoadedModels()
        starter = ModelStarter(settings, self.metrics, ResultCache(self.metrics))
        self.repository = ModelRepository(settings, self.metrics, starter, toy_folder.open, self.models)


@contextlib.asynccontextmanager
async def running(toy_folder, **models):
    run = Running(toy_folder, **models)
    await run.repository.start()
    try:
        yield run
    finally:
        await run.repository.close(5.0)


async def index_of(run):
    return {entry.name: entry for entry in await run.repository.index()}


async def test_the_start_loads_the_newest_version_of_every_model(toy_folder):
    for name, version in (("reach", "1"), ("reach", "2"), ("grasp", "1")):
        toy_folder.add(name, version)
    async with running(toy_folder) as run:
        assert run.repository.is_ready
        index = await index_of(run)
        assert {name: (entry.state, entry.version) for name, entry in index.items()} == {
            "reach": (ModelState.READY, "2"),
            "grasp": (ModelState.READY, "1"),
        }
        assert index["reach"].versions == ("1", "2")


async def test_only_the_models_that_are_named_are_loaded_at_the_start(toy_folder):
    toy_folder.add("reach", "1")
    toy_folder.add("grasp", "1")
    async with running(toy_folder, load=("grasp",)) as run:
        assert [model.contract.model for model in run.models.every()] == ["grasp"]
        assert (await index_of(run))["reach"].state is ModelState.UNAVAILABLE


async def test_a_damaged_model_leaves_the_server_unready_and_others_serving(toy_folder):
    toy_folder.add("grasp", "1")
    toy_folder.add("reach", "1", fault="damaged")
    async with running(toy_folder) as run:
        assert not run.repository.is_ready
        assert run.models.find("grasp").is_ready
        index = await index_of(run)
        assert index["reach"].state is ModelState.UNAVAILABLE
        assert "differs from the manifest" in index["reach"].reason
        assert str(toy_folder.path) not in index["reach"].reason
        toy_folder.add("reach", "1")
        await run.repository.load("reach")
        assert run.repository.is_ready


async def test_an_empty_folder_is_said_at_the_start(toy_folder):
    toy_folder.path.mkdir()
    with structlog.testing.capture_logs() as lines:
        async with running(toy_folder) as run:
            assert not run.repository.is_ready
    toy_folder.add("reach", "1")
    with structlog.testing.capture_logs() as later:
        async with running(toy_folder):
            pass
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "the folder of models holds no model yet")
    ]
    assert "warning" not in [line["log_level"] for line in later]


async def test_a_folder_of_another_revision_is_one_line_that_names_both(toy_folder):
    toy_folder.add("reach", "1").rename(toy_folder.path / "reach" / "7")
    toy_folder.add("grasp", "1")
    with structlog.testing.capture_logs() as lines:
        async with running(toy_folder) as run:
            assert not run.repository.is_ready
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert (line["model"], line["reason"]) == ("reach", "Its folder says reach 7, its contract reach 1.")
    assert not line.get("exc_info")


async def test_a_server_none_of_whose_models_loads_does_not_start(toy_folder):
    toy_folder.add("reach", "1", fault="damaged")
    with pytest.raises(ModelFault, match="differs from the manifest"):
        async with running(toy_folder):
            pass


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("damaged", "could not be opened"),
        ("restless", "golden request"),
        ("nan", "finite"),
        ("misnamed", "its contract another 2"),
    ],
)
async def test_what_fails_leaves_the_old_version_serving_and_says_why(toy_folder, fault, words):
    toy_folder.add("reach", "1")
    async with running(toy_folder) as run:
        before = run.models.find("reach")
        toy_folder.add("reach", "2", fault=fault)
        with pytest.raises(ModelFault, match=words):
            await run.repository.load("reach")
        assert run.models.find("reach") is before
        assert before.is_ready
        entry = (await index_of(run))["reach"]
        assert (entry.state, entry.version) == (ModelState.READY, "1")
        assert words in entry.reason
        assert entry.reason
        assert all(engine.is_closed for engine in toy_folder.opened[1:])
        assert run.repository.is_ready


async def test_the_old_version_closes_once_nobody_holds_it(toy_folder):
    toy_folder.add("reach", "1")
    async with running(toy_folder) as run:
        toy_folder.add("reach", "2")
        loan = run.models.loan()
        old = loan.take(lambda: run.models.find("reach"))
        loading = asyncio.create_task(run.repository.load("reach"))
        async with asyncio.timeout(PATIENCE_S):
            while run.models.find("reach") is old:  # noqa: ASYNC110 - nobody tells of a swap
                await asyncio.sleep(0)
        assert old.is_ready
        assert (await index_of(run))["reach"].state is ModelState.LOADING
        assert not toy_folder.opened[0].is_closed
        loan.end()
        entry = await loading
        assert (entry.state, entry.version) == (ModelState.READY, "2")
        assert toy_folder.opened[0].is_closed


async def test_who_never_lets_go_is_waited_for_as_long_as_a_drain_lasts(toy_folder):
    toy_folder.add("reach", "1")
    run = Running(toy_folder)
    settings = toy_folder.settings()
    run.repository._settings = settings.model_copy(update={"http": settings.http.model_copy(update={"drain_s": 0.1})})
    await run.repository.start()
    run.models.loan().take(lambda: run.models.find("reach"))
    toy_folder.add("reach", "2")
    started_s = time.monotonic()
    await run.repository.load("reach")
    assert 0.1 <= time.monotonic() - started_s < PATIENCE_S
    assert toy_folder.opened[0].is_closed
    await run.repository.close(5.0)


async def test_unloading_closes_and_loading_brings_back(toy_folder):
    toy_folder.add("reach", "1")
    toy_folder.add("grasp", "1")
    async with running(toy_folder) as run:
        entry = await run.repository.unload("reach")
        assert (entry.state, entry.version) == (ModelState.UNAVAILABLE, None)
        with pytest.raises(UnknownModel):
            run.models.find("reach")
        assert run.repository.is_ready
        assert (await run.repository.load("reach")).state is ModelState.READY
        assert run.models.find("reach").is_ready


async def test_what_is_not_loaded_cannot_be_unloaded_and_what_is_not_there_not_loaded(toy_folder):
    toy_folder.add("reach", "1")
    async with running(toy_folder, load=()) as run:
        assert not run.repository.is_ready
        for change in (run.repository.unload("reach"), run.repository.load("push"), run.repository.load("reach", "7")):
            with pytest.raises(UnknownModel):
                await change
        with pytest.raises(UnknownModel, match="adapter"):
            await run.repository.load("reach", adapter="night")


async def test_a_caller_who_leaves_does_not_stop_a_load(toy_folder):
    toy_folder.add("reach", "1")
    async with running(toy_folder) as run:
        toy_folder.add("reach", "2")
        loading = asyncio.create_task(run.repository.load("reach"))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.wait({loading})
        async with asyncio.timeout(PATIENCE_S):
            while (await index_of(run))["reach"].version != "2":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)


async def test_loads_of_one_model_take_turns(toy_folder):
    for version in ("1", "2", "3"):
        toy_folder.add("reach", version)
    async with running(toy_folder) as run:
        await asyncio.gather(*(run.repository.load("reach", version) for version in ("1", "2", "1", "3", "2")))
        assert run.models.find("reach").is_ready
        assert sum(not engine.is_closed for engine in toy_folder.opened) == 1


async def test_a_version_that_answers_otherwise_than_it_did_is_not_let_back(toy_folder):
    toy_folder.add("reach", "1", shift=0.0)
    toy_folder.add("reach", "2", shift=0.1)
    async with running(toy_folder) as run:
        await run.repository.load("reach", "1")
        known = dict(run.repository._digests)
        await run.repository.load("reach", "2")
        assert len(set(run.repository._digests.values())) == 2
        run.repository._digests.update(dict.fromkeys(known, "0" * 64))
        with pytest.raises(ModelFault, match="golden request"):
            await run.repository.load("reach", "1")
        assert run.models.find("reach").contract.revision == "2"


async def test_a_call_without_a_model_goes_to_the_only_one_that_can_answer(toy_folder):
    models = LoadedModels()
    with pytest.raises(NotReady):
        models.choose("predict")
    toy_folder.add("grasp", "1")
    async with running(toy_folder) as run:
        assert run.models.choose("predict").contract.model == "grasp"
        assert run.models.choose("likelihood").contract.model == "grasp"  # to say that it cannot
        toy_folder.add("reach", "1")
        await run.repository.load("reach")
        with pytest.raises(InvalidRequest, match="which model"):
            run.models.choose("predict")
        assert run.models.prefer("predict").contract.model == "grasp"


async def test_a_loan_follows_the_last_model_it_took(toy_folder):
    toy_folder.add("grasp", "1")
    toy_folder.add("reach", "1")
    async with running(toy_folder) as run:
        grasp, reach = (run.models.find(name) for name in ("grasp", "reach"))
        with run.models.loan() as loan:
            loan.take(lambda: grasp)
            loan.take(lambda: reach)
            assert (run.models.num_users(grasp), run.models.num_users(reach)) == (0, 1)
        loan.end()
        assert (run.models.num_users(grasp), run.models.num_users(reach)) == (0, 0)


async def test_what_becomes_of_loads_is_counted(toy_folder):
    toy_folder.add("reach", "1")
    async with running(toy_folder) as run:
        toy_folder.add("reach", "2", fault="damaged")
        with pytest.raises(ModelFault):
            await run.repository.load("reach")
        await run.repository.unload("reach")
        text = run.metrics.scrape().decode()
        for result in ("loaded", "failed", "unloaded"):
            assert f'foreframe_model_loads_total{{result="{result}"}} 1.0' in text
        assert "foreframe_model_info{" not in text
