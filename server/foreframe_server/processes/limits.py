"""How long a process may be silent, how often it may die, and how much memory it may take. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """How long a process may be silent, how often it may die, and how much memory it may take.

    hang_s: silence in which a call must have ended, or `hang_factor` times what calls of its kind took, if longer.
    start_s: time to open the model, and of the first call of a kind that was never seen.
    wait_s: how long a call waits for a process when none is alive. heartbeat_s: pause between questions to an idle one.
    delay_s, max_delay_s: pause before a restart, doubling. max_deaths within `deaths_s` end the restarts for as long.
    memory_bytes: address space of a process; None is no limit.
    """

    hang_s: float = 2.0
    hang_factor: float = 5.0
    start_s: float = 600.0
    wait_s: float = 30.0
    heartbeat_s: float = 1.0
    delay_s: float = 0.1
    max_delay_s: float = 10.0
    max_deaths: int = 5
    deaths_s: float = 60.0
    memory_bytes: int | None = None
