"""Models that processes of their own open by name: toys, and toys that misbehave where a row's guidance tells them to.

The settings' `bundle` serves as a file that tells an opener what to do.
"""

import os
import signal
import stat
from pathlib import Path

import numpy as np

from foreframe_engines import BundleError, ModelFault
from foreframe_engines.calibration import Calibration
from foreframe_engines.spread import SpreadCalibration, SpreadScale
from foreframe_engines.surprise import SurpriseCalibration
from foreframe_engines.testing import ToyLikelihoodEngine, ToyRolloutEngine, toy_contract, toy_tokens
from foreframe_engines.types import NoisePlan
from foreframe_server.opening import OpenedEngines

DIE, HANG, FAULT, SURPRISE, OBJECTS, GARBAGE, GREED = 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0
CONTRACT = toy_contract(tokens=toy_tokens())


class MarkedToy(ToyRolloutEngine):
    """A toy that does what the guidance of its first row asks for."""

    def step(self, rows):
        match rows[0].guidance:
            case mark if mark == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            case mark if mark == HANG:
                signal.pause()
            case mark if mark == FAULT:
                raise ModelFault("as asked")
            case mark if mark == SURPRISE:
                raise ValueError("a surprise")
            case mark if mark == OBJECTS:
                return [row.latents.astype(object) for row in rows]
            case mark if mark == GARBAGE:
                _write_garbage()
            case mark if mark == GREED:
                np.ones(2**33, np.uint8)
        return super().step(rows)


def _write_garbage():
    """Write to the socket what is no frame, as a process does that has lost its mind."""
    for path in Path("/proc/self/fd").iterdir():
        if int(path.name) > 2 and path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            os.write(int(path.name), b"garbage garbage garbage")


def open_toys(settings):
    return OpenedEngines("toys", MarkedToy(CONTRACT), ToyLikelihoodEngine(CONTRACT), _calibration(), Path("/toys"))


def open_rollout(settings):
    return OpenedEngines("toy", MarkedToy())


def open_likelihood(settings):
    return OpenedEngines("toy", likelihood=ToyLikelihoodEngine())


def open_wide_windows(settings):
    """Open a likelihood model that reads three frames at a time."""
    contract = toy_contract(tokens=toy_tokens(grid=(1, 2), window_frames=3, window_grids=2))
    return OpenedEngines("toy", likelihood=ToyLikelihoodEngine(contract))


def open_named(settings):
    """Open a model whose fingerprint is what the file says."""
    return OpenedEngines(settings.bundle.read_text(), MarkedToy())


def open_nothing(settings):
    raise BundleError("manifest.json: missing")


def die_at_once(settings):
    """Count the start, and die."""
    with settings.bundle.open("a") as starts:
        starts.write("start\n")
    os._exit(3)


def _calibration():
    numbers = tuple(0.1 + index / 100 for index in range(CONTRACT.horizon))
    return Calibration(
        SpreadCalibration(40, 0.95, 4, 1.0, NoisePlan.IID, (SpreadScale(2, numbers, numbers),)),
        SurpriseCalibration(3, 0.5, 0.1, tuple(index / 100 for index in range(101))),
    )
