from dataclasses import fields, replace

import numpy as np
import process_toys
import pytest

from foreframe_engines import Bundle, builtin_bundle
from foreframe_engines.calibration import UNCALIBRATED
from foreframe_engines.solvers import Solver
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_server.opening import OpenedEngines
from foreframe_server.processes.frames import PREAMBLE_BYTES, pack, unpack
from foreframe_server.processes.messages import Frame
from foreframe_server.processes.notes import describe, read_calibration, read_facts, read_folder

PLAIN = toy_contract()
BUILTIN = Bundle.open(builtin_bundle()).contract
LIKELIHOOD_ONLY = replace(toy_contract(tokens=toy_tokens()), capabilities=("likelihood",))


def cross(opened):
    """Describe what was opened, there and back as bytes."""
    return unpack(pack(Frame(number=1, body=describe(opened)))[PREAMBLE_BYTES:]).body


def assert_equal(ours, theirs):
    for field in fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "state":
            assert_equal(one, other)
        elif isinstance(one, np.ndarray):
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other, field.name


GUIDED = replace(PLAIN, sampler=replace(PLAIN.sampler, guidance=3.5, solver=Solver.UNIPC))


@pytest.mark.parametrize(
    "contract",
    [PLAIN, GUIDED, toy_contract(tokens=toy_tokens()), BUILTIN],
    ids=["plain", "guided", "tokens", "builtin"],
)
def test_a_rollout_engines_contract_crosses_whole(contract):
    facts = read_facts(cross(OpenedEngines("print", ToyRolloutEngine(contract))).rollout)
    assert_equal(contract, facts.contract)
    assert (facts.determinism, facts.noise_shape) == ("bitwise", ToyRolloutEngine(contract).noise_shape())


def test_a_contract_of_likelihoods_alone_crosses_as_its_file_says_it():
    facts = read_facts(cross(OpenedEngines("print", likelihood=ToyLikelihoodEngine(LIKELIHOOD_ONLY))).likelihood)
    assert facts.contract.tokens == LIKELIHOOD_ONLY.tokens
    assert facts.contract.capabilities == ("likelihood",)
    assert facts.noise_shape is None


def test_what_came_with_the_engines_crosses():
    opened = process_toys.open_toys(None)
    hello = cross(opened)
    assert hello.fingerprint == opened.fingerprint
    assert read_calibration(hello) == opened.calibration
    assert read_folder(hello) == opened.folder
    bare = cross(OpenedEngines("bare", ToyRolloutEngine()))
    assert read_folder(bare) is bare.likelihood is None
    assert read_calibration(bare) == UNCALIBRATED
