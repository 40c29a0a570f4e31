"""Whether a cluster may be used: its processes run what they are sent, so that they must know who sends it."""

import os

from foreframe_server.settings import SettingsError


def require_token() -> None:
    """Refuse to scale out while Ray takes work from anybody. Raises SettingsError."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise SettingsError(
            "RAY_AUTH_MODE is not token: whoever reaches the cluster could run code on it; "
            "set RAY_AUTH_MODE=token wherever Ray runs and make a token with `ray get-auth-token --generate`"
        )
