"""Every single value behind a number of a report: what two reports are compared by. Plain values, read from JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

Better: TypeAlias = Literal["lower", "higher"]
Statistic: TypeAlias = Literal["mean", "median", "p90", "p99"]

_DIGITS = 7


class UnreadableReport(ValueError):
    """A file is no report of a bench; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One measure's values, at least 0, and by which statistic they count.

    blocks: which values hang together, such as a second's or an episode's; they are resampled together. Empty: each
    stands alone. In two reports of one plan equal places are of the same question, second, round or clip. Questions
    over HTTP are the same but for eight bytes of their first picture, which keep caches of earlier runs out.
    """

    name: str
    unit: str
    better: Better
    values: tuple[float, ...]
    blocks: tuple[int, ...] = ()
    statistic: Statistic = "mean"

    def record(self) -> dict[str, object]:
        """Return all of it as a JSON object, to seven digits."""
        return {**asdict(self), "values": [float(f"{value:.{_DIGITS}g}") for value in self.values]}


def read_samples(record: Mapping[str, object]) -> list[Samples]:
    """Read a report's samples; a report of before they were written has none. Raises UnreadableReport."""
    listed = record.get("samples", [])
    if not isinstance(listed, list):
        raise UnreadableReport("its `samples` are no list")
    return [_read(each, place) for place, each in enumerate(listed)]


def _read(fields: object, place: int) -> Samples:
    try:
        samples = _parse(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableReport(f"its samples[{place}] are not what a bench writes: {error}") from error
    if samples.better not in get_args(Better) or samples.statistic not in get_args(Statistic):
        raise UnreadableReport(f"its samples[{place}] have an unknown statistic or direction")
    if not are_comparable(samples.values) or len(samples.blocks) not in {0, len(samples.values)}:
        raise UnreadableReport(f"its samples[{place}] are empty, below 0, or in blocks of another number")
    return samples


def _parse(fields: object) -> Samples:
    if not isinstance(fields, dict):
        raise TypeError("no object")
    return Samples(
        name=str(fields["name"]),
        unit=str(fields["unit"]),
        better=fields["better"],
        values=tuple(map(float, fields["values"])),
        blocks=tuple(map(int, fields["blocks"])),
        statistic=fields["statistic"],
    )


def are_comparable(values: Iterable[float | None]) -> bool:
    """Whether ratios of these mean something: there are some, and all are known and none is below 0."""
    known: Sequence[float | None] = list(values)
    return bool(known) and all(value is not None and math.isfinite(value) and value >= 0 for value in known)
