"""What is counted is what the paper-and-pencil count says, whichever thread it runs in."""

import pytest

from foreframe_engines import Bundle, builtin_bundle
from foreframe_models.counting import open_counted_engine
from foreframe_models.reference import build_models
from foreframe_models.roofline import own_work
from foreframe_server.cli.bench_stages import Stages

MEMBERS = 2


@pytest.fixture(scope="module")
def works():
    engine, tally = open_counted_engine(builtin_bundle())
    yield {name: tally.of(run) for name, run in Stages(engine, Bundle.open(builtin_bundle()), MEMBERS).ways().items()}
    engine.close()


def test_a_step_computes_what_its_layers_say(works):
    own = own_work(build_models(builtin_bundle()).rollout.config, MEMBERS)
    counted = works[f"step of {MEMBERS}"]
    assert counted.attention == pytest.approx(own.attention, rel=0.25)  # products of other batches count as such
    assert counted.total == pytest.approx(own.total, rel=0.1)


def test_pictures_are_convolutions(works):
    for stage in ("encode", "decode all frames"):
        assert works[stage].convolutions > 0.5 * works[stage].total > 0
    assert works["decode all frames"].total > works["decode the last frame"].total
