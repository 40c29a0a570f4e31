"""Whether two ways to run one graph give the same: recorded runs of one, replayed on the other. Knows no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foreframe_engines.errors import ModelFault
from foreframe_engines.runtime.session import Session
from foreframe_engines.runtime.typed_graph import Precision

_SMALLEST = 1e-12

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart outputs may be.

    relative_rms: root mean square of the error against that of the reference, of numbers. grey_rms: root mean square
    of the error in grey levels, of pixels. unequal: share of ids that differ.
    """

    relative_rms: float
    grey_rms: float
    unequal: float


TOLERANCES = {
    Precision.FP32: Tolerance(1e-3, 0.25, 1e-3),
    Precision.BF16: Tolerance(3e-2, 2.0, 5e-2),
    Precision.FP8: Tolerance(1e-1, 6.0, 1.5e-1),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """How well a graph agreed with a reference: the worst of its outputs, as a share of what is allowed."""

    reference: str
    num_runs: int
    worst: str
    share: float
    max_abs: float


@dataclass(frozen=True, slots=True, eq=False)
class GoldenRun:
    """What one run of a graph took and gave."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


class RecordingSession:
    """A session that keeps every run of another, in `runs`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.input_names = session.input_names
        self.output_names = session.output_names
        self.device = session.device
        self.runs: list[GoldenRun] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph and keep what went in and came out."""
        outputs = self._session.run(inputs)
        self.runs.append(GoldenRun(dict(inputs), outputs))
        return outputs

    def close(self) -> None:
        """Free the graph; the runs are kept."""
        self._session.close()


def check_parity(
    name: str, session: Session, runs: Sequence[GoldenRun], tolerance: Tolerance, reference: str
) -> Parity:
    """Replay runs and compare every output. Raises ModelFault when one is further away than allowed, or nothing is."""
    if not runs:
        raise ModelFault(f"{name}: there is nothing to compare with {reference}")
    found = [compare_outputs(name, session.run(run.inputs), run.outputs, tolerance, reference) for run in runs]
    worst = max(found, key=lambda parity: parity.share)
    return replace(worst, num_runs=len(runs), max_abs=max(parity.max_abs for parity in found))


def compare_outputs(name: str, outputs: Outputs, expected: Outputs, tolerance: Tolerance, reference: str) -> Parity:
    """Compare one run's outputs with a reference's. Raises ModelFault naming the output that differs too much."""
    for key, values in expected.items():
        _require_like(f"{name}: {key!r}", outputs.get(key), values)
    shares = {key: _distance(outputs[key], values, tolerance) for key, values in expected.items()}
    worst = max(shares, key=lambda key: shares[key])
    max_abs = max(_largest_difference(outputs[key], values) for key, values in expected.items())
    if shares[worst] > 1.0:
        raise ModelFault(
            f"{name}: {worst!r} differs from {reference} {shares[worst]:.1f} times as much as is allowed, "
            f"by {max_abs:.3g} at most"
        )
    return Parity(reference, 1, worst, shares[worst], max_abs)


def _require_like(where: str, output: np.ndarray | None, expected: np.ndarray) -> None:
    if output is None or output.dtype != expected.dtype or output.shape != expected.shape:
        found = "missing" if output is None else f"{output.dtype} {list(output.shape)}"
        raise ModelFault(f"{where} is {found}, not {expected.dtype} {list(expected.shape)}")


def _distance(output: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> float:
    """Measure by the kind of values; 1 is what is allowed, and what is not a number is infinitely far away."""
    if expected.dtype.kind in "ib":
        return float((output != expected).mean()) / tolerance.unequal
    error = _rms(output.astype(np.float64) - expected)
    if not np.isfinite(error):
        return math.inf
    if expected.dtype == np.uint8:
        return error / tolerance.grey_rms
    return error / max(_rms(expected), _SMALLEST) / tolerance.relative_rms


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _largest_difference(output: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(output.astype(np.float64) - expected.astype(np.float64)).max())
