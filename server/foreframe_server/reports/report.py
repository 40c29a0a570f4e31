"""One bench's findings: what was asked, what came out, and every value behind it. Knows no file and no machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foreframe_server.plots import Chart
from foreframe_server.reports.header import Header
from foreframe_server.reports.samples import Samples


@dataclass(frozen=True, slots=True)
class Report:
    """What a bench found.

    plan: what was asked for; reports of equal plans can be compared. record: what was found, as plain JSON. faults: why
    the run says nothing; with one, no number of it is told.
    """

    experiment: str
    plan: Mapping[str, object] = field(default_factory=dict)
    record: Mapping[str, object] = field(default_factory=dict)
    samples: Sequence[Samples] = ()
    charts: Sequence[Chart] = ()
    seeds: Sequence[int] = ()
    faults: Sequence[str] = ()

    @property
    def is_valid(self) -> bool:
        """Whether its numbers count."""
        return not self.faults

    def document(self, header: Header) -> dict[str, object]:
        """Return it as one JSON object; of a run that says nothing, only what was asked and why it says nothing."""
        named = {
            "experiment": self.experiment,
            "header": header.record(),
            "is_valid": self.is_valid,
            "plan": dict(self.plan),
        }
        if self.faults:
            return {**named, "faults": list(self.faults)}
        return {**named, **self.record, "samples": [each.record() for each in self.samples]}
