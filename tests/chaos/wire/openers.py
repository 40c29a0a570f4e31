"""Opens an oracle that harms nobody, whatever states it is asked with; a child process opens it by its name."""

from foreframe_engines.testing_oracle import OracleEngine, OracleLikelihood
from foreframe_server.opening import OpenedEngines
from foreframe_server.settings import EngineSettings


def open_calm(_settings: EngineSettings) -> OpenedEngines:
    """Open an oracle whose knobs do nothing."""
    return OpenedEngines("oracle", OracleEngine(is_calm=True), OracleLikelihood())
