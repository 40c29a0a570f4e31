"""Opens oracles for a server, in its own process or in a child's; the environment says how fast and how faulty."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from foreframe_engines import Conditioning
from foreframe_engines.testing_oracle import MixedUpOracle, OracleEngine, OracleLikelihood, Pace
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import EngineSettings

ROW_MS, FAULT, STARTS, BROKEN = "ORACLE_ROW_MS", "ORACLE_FAULT", "ORACLE_STARTS", "ORACLE_BROKEN"
_LEAK_BYTES = 1024


class LeakyOracle(OracleEngine):
    """An oracle with a planted leak of 1 kB a question."""

    def __init__(self, *, pace: Pace) -> None:
        super().__init__(pace=pace)
        self._leaked: list[bytes] = []

    def condition(self, context_latents, states) -> Conditioning:
        self._leaked.append(os.urandom(_LEAK_BYTES))
        return super().condition(context_latents, states)


ENGINES = {"": OracleEngine, "mixed": MixedUpOracle, "leak": LeakyOracle}


def open_oracle(_settings: EngineSettings) -> OpenedEngines:
    """Open an oracle; abort where the model is said to be broken. Every opening is one line of the file of starts."""
    _write_start(os.environ)
    pace = Pace(row_ms=float(os.environ.get(ROW_MS, "0")))
    rollout = ENGINES[os.environ.get(FAULT, "")](pace=pace)
    return OpenedEngines("oracle", rollout, OracleLikelihood(pace=pace))


def _write_start(environ: Mapping[str, str]) -> None:
    if STARTS in environ:
        with Path(environ[STARTS]).open("a") as starts:
            starts.write(f"{os.getpid()} {time.monotonic()}\n")
    if BROKEN in environ and Path(environ[BROKEN]).exists():
        os.abort()
