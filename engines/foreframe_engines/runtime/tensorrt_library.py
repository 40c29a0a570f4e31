"""TensorRT and TensorRT-RTX: one Python API under two module names. Neither is imported before it is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from foreframe_engines.errors import RuntimeUnavailable

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
LIBRARIES: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx")
_MODULES: dict[LibraryName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_REMEDY = "run `pip install tensorrt-cu13`, or `pip install tensorrt-rtx-cu13` for GeForce and RTX cards"


@dataclass(frozen=True, slots=True, eq=False)
class TensorRtLibrary:
    """One of the two libraries, imported."""

    name: LibraryName
    module: Any

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.module.__version__)

    @property
    def is_portable(self) -> bool:
        """Whether engines are built ahead of time for an architecture, without a GPU and for any driver."""
        return self.name == "tensorrt-rtx"

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architectures that engines can be built for without a GPU, such as `sm89`."""
        if not self.is_portable:
            return ()
        return tuple(name.lower() for name in self.module.ComputeCapability.__members__ if name.startswith("SM"))

    def require_architecture(self, architecture: str) -> None:
        """Raise RuntimeUnavailable for an architecture that the library has no kernels for."""
        if self.is_portable and architecture not in self.architectures:
            known = ", ".join(self.architectures)
            raise RuntimeUnavailable(f"TensorRT-RTX {self.version} builds for {known}, not {architecture}")

    def dtype_name(self, data_type: object) -> str:
        """Say a data type of the library as numpy does."""
        name: str = data_type.name  # type: ignore[attr-defined]
        return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8"}.get(name, name.lower())

    def open_log(self) -> "LibraryLog":
        """Return a log that keeps what the library complains about."""
        return _open_log(self.module)


@dataclass(slots=True, eq=False)
class LibraryLog:
    """What the library said while one thing was done; `sink` is what it has to be given."""

    errors: list[str] = field(default_factory=list)
    sink: Any = None

    def last_error(self) -> str:
        """Return the last error in one line, empty when there was none."""
        return " ".join(self.errors[-1].split()) if self.errors else ""


def find_library(names: Iterable[LibraryName] = LIBRARIES) -> TensorRtLibrary:
    """Import the first library that is installed. Raises RuntimeUnavailable when none is."""
    wanted = tuple(names)
    for name in wanted:
        for module_name in _MODULES[name]:
            module = _import(module_name)
            if module is not None:
                return TensorRtLibrary(name, module)
    raise RuntimeUnavailable(f"{' or '.join(wanted)} is not installed; {_REMEDY}")


def _import(module_name: str) -> ModuleType | None:
    try:
        return import_module(module_name)
    except (ImportError, OSError):  # its own shared libraries may be missing
        return None


def _open_log(module: Any) -> LibraryLog:  # noqa: ANN401 - the library has no types
    log = LibraryLog()

    class Sink(module.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity <= module.ILogger.Severity.ERROR:
                log.errors.append(message)

    log.sink = Sink()
    return log
