"""What the connections of one listener share. Knows no bytes."""

from dataclasses import dataclass, field

from uvicorn.server import ServerState

from foreframe_server.protocols.head import HeadLimits
from foreframe_server.protocols.visitors import Visitors


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How long a request may take to arrive and how much of it there may be. min_rate: bytes a second."""

    head: HeadLimits = field(default_factory=HeadLimits)
    header_timeout_s: float = 5.0
    body_timeout_s: float = 10.0
    keep_alive_s: float = 5.0
    min_rate: float = 64_000
    max_chunks: int = 65_536


class DoorState(ServerState):
    """uvicorn's shared state, with the limits, who is there, and which listener they came to."""

    def __init__(self, limits: DoorLimits, visitors: Visitors, listener: str) -> None:
        super().__init__()
        self.limits = limits
        self.visitors = visitors
        self.listener = listener
