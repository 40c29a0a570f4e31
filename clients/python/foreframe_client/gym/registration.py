"""Names for `gymnasium.make` and `gymnasium.make_vec`."""

from __future__ import annotations

import gymnasium

ENV_ID = "foreframe/RemoteWorld-v0"


def register() -> str:
    """Register the environment unless it is, and return its name.

    `make(name, server=url, task=task)` and `make_vec(name, num_envs=8, server=url, task=task)` then make one.
    """
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="foreframe_client.gym:RemoteWorldEnv",
            vector_entry_point="foreframe_client.gym:RemoteWorldVectorEnv",
        )
    return ENV_ID
