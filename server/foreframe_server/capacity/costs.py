"""What work takes on one device, as a server that has run for a while says in its metrics, or as a file says.

It knows no scheduler and no clock.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

_COST, _STAGE = "foreframe_cost_seconds", "foreframe_stage_seconds"
_BEFORE, _AFTER = ("receive", "decode"), ("reduce", "respond")
_Z_HIGH = 0.6745
"""How many standard deviations the 3/4 quantile of a normal distribution lies above its mean."""


class CostsError(ValueError):
    """A file or a server does not say what work takes."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one kind of work takes: its mean, and what three of four times lie below."""

    mean: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one duration: log-normal, which is never negative and has a tail."""
        sigma = math.log(max(1.0, self.high / self.mean)) / _Z_HIGH if self.mean > 0 else 0.0
        return self.mean * math.exp(rng.normal(-0.5 * sigma**2, sigma))

    def scaled(self, factor: float) -> "Seconds":
        """Return it on a device that takes `factor` as long."""
        return Seconds(self.mean * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of preparing a question, of decoding a frame, and of forwards by their rows, on one device.

    before_s, after_s: from a question's first byte to the queue, and from the device to the reply's last byte.
    """

    prepare: Seconds
    frame: Seconds
    steps: Mapping[int, Seconds]
    before_s: float
    after_s: float

    def step(self, rows: int) -> Seconds:
        """Return what a forward of so many rows takes, or of the next larger size that is known."""
        known = sorted(self.steps)
        return self.steps[next((size for size in known if size >= rows), known[-1])]

    def sped_up(self, factor: float) -> "Costs":
        """Return the costs of a device that is so many times as fast; the wire stays as it is."""
        steps = {rows: seconds.scaled(1 / factor) for rows, seconds in self.steps.items()}
        return replace(self, prepare=self.prepare.scaled(1 / factor), frame=self.frame.scaled(1 / factor), steps=steps)

    def to_json(self) -> dict[str, object]:
        """Return all of it as one JSON object."""
        return asdict(self)


def costs_from_json(text: str) -> Costs:
    """Read what `Costs.to_json` wrote, alone or as a fact of a bench's report. Raises CostsError."""
    try:
        record = json.loads(text)
        record = record.get("facts", record).get("costs", record)
        return _check(
            Costs(
                Seconds(**record["prepare"]),
                Seconds(**record["frame"]),
                {int(rows): Seconds(**seconds) for rows, seconds in record["steps"].items()},
                float(record["before_s"]),
                float(record["after_s"]),
            )
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CostsError(f"this is no file of costs: {error}") from error


def costs_from_metrics(text: str) -> Costs:
    """Read what a server's metrics say. Raises CostsError before it has answered predictions."""
    known: dict[tuple[str, int], dict[str, float]] = {}
    for labels, value in _samples(text, _COST):
        known.setdefault((labels["work"], int(labels["rows"])), {})[labels["statistic"]] = value
    try:
        work = {key: Seconds(**values) for key, values in known.items()}
        steps = {rows: seconds for (kind, rows), seconds in work.items() if kind == "step"}
        before_s, after_s = (sum(_mean_stage_s(text, stage) for stage in stages) for stages in (_BEFORE, _AFTER))
        return _check(Costs(work["prepare", 1], work["frame", 1], steps, before_s, after_s))
    except (KeyError, TypeError) as error:
        raise CostsError(f"the server's metrics do not say what {error} takes") from error


def _check(costs: Costs) -> Costs:
    if not costs.steps:
        raise CostsError("no forward has been measured")
    numbers = [costs.before_s, costs.after_s]
    for seconds in (costs.prepare, costs.frame, *costs.steps.values()):
        numbers += [seconds.mean, seconds.high]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise CostsError("a cost is negative or no number")
    if min(seconds.mean for seconds in costs.steps.values()) <= 0:
        raise CostsError("a forward takes no time")
    return costs


def _mean_stage_s(text: str, stage: str) -> float:
    totals = {
        name: next((value for labels, value in _samples(text, _STAGE, name) if labels["stage"] == stage), 0.0)
        for name in ("_sum", "_count")
    }
    return totals["_sum"] / totals["_count"] if totals["_count"] else 0.0


def _samples(text: str, family: str, suffix: str = "") -> Iterator[tuple[Mapping[str, str], float]]:
    for metric in text_string_to_metric_families(text):
        if metric.name == family:
            for sample in metric.samples:
                if sample.name == family + suffix:
                    yield sample.labels, sample.value
