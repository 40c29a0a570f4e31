"""What became of each question, as the asker saw it. Values only."""

from dataclasses import dataclass

from foreframe_server.load.traces import Arrival

OK = "ok"
SUPERSEDED = "superseded"
UNREACHABLE = "unreachable"
SHED = frozenset({"overloaded", "quota_exceeded", "deadline_unmeetable"})
"""Codes of a server that has too much to do and says so."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. code: `ok`, a refusal's, or `unreachable`. server_ms: from the first byte, as the server says.

    device_ms: the server's time without receiving, reading, waiting, reducing and writing.
    spread: the mean of the frames' spreads, where white is 1.
    """

    code: str
    members: int = 0
    from_cache: int = 0
    rows_per_step: float = 0.0
    server_ms: float = 0.0
    device_ms: float = 0.0
    cache: str = ""
    spread: float | None = None
    is_degraded: bool = False
    says_late: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether it is an answer."""
        return self.code == OK

    @property
    def is_shed(self) -> bool:
        """Whether it is a refusal for lack of room."""
        return self.code in SHED


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its reply. Seconds count from the trace's start; latency counts from when it was due."""

    arrival: Arrival
    sent_s: float
    done_s: float
    reply: Reply

    @property
    def latency_ms(self) -> float:
        """Milliseconds from when the question was due to the reply's last byte."""
        return 1000 * (self.done_s - self.arrival.due_s)

    @property
    def lag_ms(self) -> float:
        """Milliseconds that the asker itself was late."""
        return 1000 * (self.sent_s - self.arrival.due_s)

    @property
    def late_ms(self) -> float:
        """Milliseconds after the deadline at which the reply came; 0 in time or without a deadline."""
        deadline_ms = self.arrival.ask.deadline_ms
        return 0.0 if deadline_ms is None else max(0.0, self.latency_ms - deadline_ms)

    @property
    def is_miss(self) -> bool:
        """Whether a deadline passed without an answer in hand."""
        return self.arrival.ask.deadline_ms is not None and (not self.reply.is_ok or self.late_ms > 0)

    def is_good(self, slo_ms: float | None) -> bool:
        """Whether it was answered within `slo_ms` of when it was due; None is however late."""
        return self.reply.is_ok and (slo_ms is None or self.latency_ms <= slo_ms)
