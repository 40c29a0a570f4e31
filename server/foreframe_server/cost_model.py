"""What the device's work will take, learned from what it took. Pure: it knows no device, no clock and no job.

Forwards are a table by their number of rows, because hardware is not a line: two lanes take two rows in the time of
one, a padded bucket costs the same full or not. Estimates move slowly towards a quantile, so one stall changes little.
"""

from collections.abc import Iterator, Mapping, Sequence

_QUANTILE = 0.75
"""Plans that are a little slow keep their deadlines; those at the median would miss every second one."""

_STEP = 0.05
_ERROR_SMOOTHING = 0.05
_KNEE_SHARE = 0.9
_ROOMY_S = 0.05
"""What a forward may take where nobody waits for its end: what each costs beside its rows is then a small share."""


class SlowQuantile:
    """A running estimate of what a share `_QUANTILE` of values lies below, and of their mean; 0 before the first."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = self.mean = value

    def observe(self, value: float) -> None:
        """Move a little towards a value: the quantile up far more often than down."""
        if self.value <= 0:
            self.value = self.mean = value
        else:
            self.value *= 1 + _STEP * (_QUANTILE - (value < self.value))
            self.mean += _STEP * (value - self.mean)


class CostModel:
    """Predicted seconds of preparing a job, of forwards of so many rows, and of decoding frames.

    Before anything is observed every prediction is 0. `max_rows` is the most rows of a forward that are worth waiting
    for: the fewest, but one for each lane, whose rows a second come within 10 % of the best.
    """

    def __init__(self, buckets: Sequence[int], *, max_rows: int | None = None) -> None:
        self._buckets = tuple(buckets)
        self._fixed_rows = max_rows
        self._steps: dict[int, SlowQuantile] = {}
        self._prepare = SlowQuantile()
        self._frame = SlowQuantile()
        self.max_rows = max_rows or self._buckets[-1]
        self.error_ratio = 0.0
        """Running mean of how far predictions of forwards were off, relative to what they took."""

    @property
    def prepare_s(self) -> float:
        """Predicted seconds of encoding and conditioning one job."""
        return self._prepare.value

    @property
    def row_s(self) -> float:
        """Predicted seconds of one row in a forward that is full."""
        return self.step_s(self.max_rows) / self.max_rows

    @property
    def roomy_rows(self) -> int:
        """The rows of a forward where nobody waits for its end: those of a larger bucket, or `max_rows`."""
        forward_s = self.step_s(self.max_rows)
        if self._fixed_rows is not None or forward_s <= 0:
            return self.max_rows
        most = self.max_rows * _ROOMY_S / forward_s
        return max((rows for rows in self._buckets if self.max_rows < rows <= most), default=self.max_rows)

    def turn_members(self, frames: int, *, is_roomy: bool) -> int:
        """Return how many members of so many frames to decode before others have a turn; at least one."""
        turn_s, member_s = self.step_s(self.max_rows), self.decode_s(frames)
        return max(1, int(max(turn_s, is_roomy * _ROOMY_S) / member_s)) if member_s > 0 else 1

    def step_s(self, rows: int) -> float:
        """Predict a forward of so many rows: as it was seen, or as the next larger size that was."""
        known = [size for size in self._steps if size >= rows]
        return self._steps[min(known)].value if known else 0.0

    def decode_s(self, frames: int) -> float:
        """Predict decoding so many frames."""
        return self._frame.value * frames

    def wave_s(self, members: int, steps: int, frames: int) -> float:
        """Predict the seconds from encoding to the first of so many members, so many as a full forward makes whole."""
        rows = min(self.max_rows, members)
        return self.prepare_s + steps * self.step_s(rows) + rows * self.decode_s(frames)

    def known(self) -> Iterator[tuple[str, int, SlowQuantile]]:
        """Tell each kind of work, `prepare`, `frame` or `step`, with its rows, and what it takes."""
        yield from (("prepare", 1, self._prepare), ("frame", 1, self._frame))
        # Larger forwards are no plan: they run where nobody waits.
        yield from (("step", rows, seconds) for rows, seconds in sorted(self._steps.items()) if rows <= self.max_rows)

    def forget(self) -> None:
        """Know nothing again: another engine has taken over."""
        self._steps.clear()
        self._prepare, self._frame = SlowQuantile(), SlowQuantile()

    def fit(self, seconds: Mapping[int, float], *, num_lanes: int = 1) -> None:
        """Start from what a forward of each size took in a warm-up, on so many lanes."""
        for rows, value in seconds.items():
            self._steps[rows] = SlowQuantile(value)
        if self._fixed_rows is None:
            rates = {rows: rows / value for rows, value in seconds.items() if value > 0}
            best = max(rates.values(), default=0.0)
            worthwhile = [rows for rows, rate in rates.items() if rate >= _KNEE_SHARE * best]
            least = min(num_lanes, self._buckets[-1])  # fewer were timed beside something else
            self.max_rows = max(least, min(worthwhile, default=self.max_rows))

    def observe_step(self, rows: int, seconds: float) -> None:
        """Learn from one forward."""
        predicted = self.step_s(rows)
        if predicted > 0 and seconds > 0:
            self.error_ratio += _ERROR_SMOOTHING * (abs(predicted - seconds) / seconds - self.error_ratio)
        if rows not in self._steps:
            self._steps[rows] = SlowQuantile()
        self._steps[rows].observe(seconds)

    def observe_prepare(self, seconds: float) -> None:
        """Learn from encoding and conditioning one job."""
        self._prepare.observe(seconds)

    def observe_decode(self, frames: int, seconds: float) -> None:
        """Learn from decoding so many frames."""
        self._frame.observe(seconds / frames)
