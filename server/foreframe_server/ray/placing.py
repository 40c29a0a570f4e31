"""Which replica a call goes to: the one it names, or any while it names none."""

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class PlacingRouter(RequestRouter):
    """Sends a call to the replica that its first argument names.

    Who calls knows what waits where, and splits ensembles by it. A name of a replica that is gone sends the call
    anywhere; whoever gets it says that it was not meant.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replica to try."""
        place = pending_request.args[0] if pending_request is not None and pending_request.args else ""
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == place]
        return [named or random.sample(candidate_replicas, 1)]
