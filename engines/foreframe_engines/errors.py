"""What can break below the service. These errors know no HTTP.

EngineError
├── BundleError            a bundle is missing, damaged or not what its manifest says
│   └── CheckpointError    a checkpoint or an adapter is missing, damaged, or does not fit the model
├── RuntimeUnavailable     the runtime or device that was asked for is not here
├── ShapeMismatch          a tensor has not the shape or dtype that the contract states
├── ModelFault             a graph failed or returned values that are not finite
├── EngineLost             the process that ran the engine died or stopped answering
└── DatasetError           recorded episodes are missing or damaged
"""


class EngineError(Exception):
    """Base of every error of this package."""


class BundleError(EngineError):
    """A bundle is missing, damaged or not what its manifest says."""


class CheckpointError(BundleError):
    """A checkpoint or an adapter is missing, damaged, or does not fit the model; names the file, tensor or number."""


class RuntimeUnavailable(EngineError):
    """The runtime or device that was asked for is not here."""


class ShapeMismatch(EngineError):
    """A tensor has not the shape or dtype that the contract states."""


class ModelFault(EngineError):
    """A graph failed or returned values that are not finite."""


class EngineLost(EngineError):
    """The process that ran the engine died or stopped answering; the call had no effect and may be repeated.

    `has_run`: whether the call had begun in it, so that the call may be what it died of.
    """

    def __init__(self, message: str, *, has_run: bool = True) -> None:
        super().__init__(message)
        self.has_run = has_run


class DatasetError(EngineError):
    """Recorded episodes are missing or damaged."""
