"""What is measured, in order: foreframe first and last, every peer, and some peers without foreframe's engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from peers.catalogue import OURS, Peer

PLAIN_PEERS = ("fastapi", "mosec")
AGAIN, PLAIN = "again", "plain"


@dataclass(frozen=True, slots=True)
class Pass:
    """One measurement of one server. kind: empty for all of it.

    `again` leaves out the stub; `plain` is the throughput alone, with ONNX Runtime's own threads and members as one
    batch, as one would host the graphs without foreframe's engine.
    """

    peer: Peer
    kind: str = ""

    @property
    def name(self) -> str:
        """What its result is called."""
        return f"{self.peer.name}-{self.kind}" if self.kind else self.peer.name


def list_passes(peers: Sequence[Peer]) -> list[Pass]:
    """Lay out the passes of some servers."""
    passes = [each for peer in peers for each in _passes_of(peer)]
    return passes + [Pass(peer, AGAIN) for peer in peers if peer.name == OURS]


def _passes_of(peer: Peer) -> list[Pass]:
    return [Pass(peer), Pass(peer, PLAIN)] if peer.name in PLAIN_PEERS else [Pass(peer)]
