"""A server that knows the right answers by heart and gives them, or others, for runs without a model."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from peers.catalogue import Peer
from peers.ledger import Ledger
from peers.plan import Plan
from peers.wires import raw

from foreframe_engines import Bundle, builtin_bundle

FOLDER = Path(__file__).parent
SHIFT, KNOWN = "TOY_SHIFT", "TOY_KNOWN"


@pytest.fixture
def plan():
    return Plan(
        answer_s=0.1, arrangement="lanes", seconds=1.0, members=2, bulk_members=4, quality_members=4, clips=2,
        askers=2, max_lag_ms=1000.0,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path, plan):
    """A folder with a plan and with right answers that no model gave."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.begin(plan)
    means = np.random.default_rng(0).integers(0, 250, (2, 4, 8, 64, 64, 3)).astype(np.uint8)
    np.save(ledger.folder / f"truths-{Bundle.open(builtin_bundle()).digest[:16]}-2-4.npy", means)
    return ledger


@pytest.fixture
def make_toy(ledger):
    """Make a server whose answers are some grey levels off."""

    def make(name="toy", shift=0):
        (known,) = ledger.folder.glob("truths-*.npy")
        environment = {KNOWN: str(known), SHIFT: str(shift)}
        command = [sys.executable, str(FOLDER / "toy_server.py")]
        return Peer(name, raw("/"), lambda port: [*command, str(port)], python=None, environment=environment)

    return make


@pytest.fixture(autouse=True)
def _same_cores():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)
