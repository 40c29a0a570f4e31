"""A server that knows the right answers by heart and gives them, or others, for runs without a model."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from peers.catalogue import Peer
from peers.facts import origin
from peers.hosting.wire import REPLY_SHAPE
from peers.ledger import Ledger
from peers.plan import Plan
from peers.wires import raw

from foreframe_engines import Bundle, builtin_bundle

FOLDER = Path(__file__).parent
NUM_CONTENTS = 3000


@pytest.fixture
def plan():
    return Plan(
        answer_s=0.1, arrangement="lanes", seconds=1.0, members=2, bulk_members=4, quality_members=4, clips=2,
        askers=2, max_lag_ms=1000.0,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path, plan):
    """A folder with a plan and with right answers that no model gave: one for even contents, one for odd ones."""
    ledger = Ledger(tmp_path / "ledger", origin())
    ledger.begin(plan)
    folder = ledger.folder / f"truths-{Bundle.open(builtin_bundle()).digest[:16]}-{plan.clips}"
    folder.mkdir()
    random = np.random.default_rng(0)
    for content in range(2):
        for members in (plan.members, plan.bulk_members):
            np.save(folder / f"{content}-{members}.npy", random.integers(0, 250, REPLY_SHAPE).astype(np.uint8))
            for other in range(content + 2, NUM_CONTENTS, 2):
                os.link(folder / f"{content}-{members}.npy", folder / f"{other}-{members}.npy")
    return ledger


@pytest.fixture
def make_toy(ledger):
    """Make a server whose answers are some grey levels off, and which ends instead of one answer where it is told."""

    def make(name="toy", shift=0, last=0):
        (known,) = ledger.folder.glob("truths-*")
        environment = {"TOY_KNOWN": str(known), "TOY_SHIFT": str(shift), "TOY_LAST": str(last)}
        command = [sys.executable, str(FOLDER / "toy_server.py")]
        return Peer(name, raw("/"), lambda port: [*command, str(port)], python=None, environment=environment)

    return make


@pytest.fixture(autouse=True)
def _same_cores():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)
