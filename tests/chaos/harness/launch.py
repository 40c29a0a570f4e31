"""`python -m harness.launch`: serve an oracle until told to stop, under the limits that the environment names."""

import json
import os
import resource
import sys
import threading
import time

from harness.openers import open_oracle

from foreframe_engines import Contract
from foreframe_server.cli.serving import serve_until_stopped
from foreframe_server.log import configure_logging
from foreframe_server.settings import read_settings

FILES, CLOCK_S = "CHAOS_FILES", "CHAOS_CLOCK_S"
CLOCK_STEP_S = 3600.0


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if FILES in os.environ:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ[FILES]),) * 2)
    configure_logging()
    serve_until_stopped(read_settings({"http": {"host": "127.0.0.1", "port": 0}}), announce, open_oracle)


def announce(address: str, _contract: Contract) -> None:
    sys.stdout.write(json.dumps({"address": address}) + "\n")
    sys.stdout.flush()
    if CLOCK_S in os.environ:
        timer = threading.Timer(float(os.environ[CLOCK_S]), step_clock)
        timer.daemon = True
        timer.start()


def step_clock() -> None:
    """Put the wall clock forward, as a time server would."""
    wall = time.time
    time.time = lambda: wall() + CLOCK_STEP_S


if __name__ == "__main__":
    main()
