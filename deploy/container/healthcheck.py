"""Exit 0 when the server of this container lives. Standard library alone; looks at liveness, never at readiness."""

import http.client
import os
import sys
from collections.abc import Mapping

PORT_NAMES = ("FOREFRAME_HTTP__ADMIN_PORT", "FOREFRAME_HTTP__PORT")
_TIMEOUT_S = 2.0


def is_alive(environ: Mapping[str, str]) -> bool:
    """Ask the listener that the environment names, the admin one first."""
    port = next((environ[name] for name in PORT_NAMES if environ.get(name)), "8000")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_alive(os.environ) else 1)
