"""One graph ready to run, whatever runs it: arrays in by name, arrays out by name. Knows no model family."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from foreframe_engines.errors import BundleError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph's input or output; an axis whose length may vary is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, other: "TensorSpec") -> bool:
        """Tell whether both have one dtype and rank, and equal lengths wherever both state one."""
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(a == b for a, b in zip(self.shape, other.shape, strict=True) if a is not None and b is not None)
        )


@runtime_checkable
class Session(Protocol):
    """Runs one graph. `run` may be called from several threads at once."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    device: str

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once on exactly the named inputs. Raises ModelFault when it fails."""
        ...

    def close(self) -> None:
        """Free what the graph holds."""
        ...


class DescribedSession(Session, Protocol):
    """A session whose graph says what its tensors are."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def require_tensors(place: str, expected: Iterable[TensorSpec], actual: Iterable[TensorSpec]) -> None:
    """Find at a place each expected tensor by name, with its dtype and axes. Raises BundleError naming both."""
    by_name = {spec.name: spec for spec in actual}
    for spec in expected:
        if spec.name not in by_name or not spec.fits(by_name[spec.name]):
            raise BundleError(f"{place} {spec.name!r} is not {spec.dtype} {list(spec.shape)}")
