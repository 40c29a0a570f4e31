"""How many calls a process has begun: a number that outlives it. Knows no call."""

import os
from typing import Self


class Tally:
    """A counter behind a file descriptor: one side adds, the other looks once the first is gone."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self.fd = fd

    @classmethod
    def create(cls) -> Self:
        """Make one that stands at zero. Raises OSError when the system refuses it."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def add(self) -> None:
        """Count one more."""
        os.eventfd_write(self.fd, 1)

    def take(self) -> int:
        """Return how many were counted, and begin anew."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:  # none
            return 0

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
