"""Functions that open a model, by their dotted names, as they cross to another process. Nothing is pickled."""

import importlib
from collections.abc import Callable

from foreframe_engines import EngineError
from foreframe_server.opening import OpenedEngines, OpenEngines


def name_opener(opener: OpenEngines) -> str:
    """Return `module:qualname`. Raises ValueError when the opener cannot be found again by that name."""
    module, name = getattr(opener, "__module__", None), getattr(opener, "__qualname__", None)
    dotted = f"{module}:{name}"
    if not module or not name or module == "__main__":
        raise ValueError(f"{opener!r} is not a function of a module that can be imported")
    try:
        found = find_opener(dotted)
    except EngineError as error:
        raise ValueError(f"{dotted} cannot be found by its name: a process of its own could not open it") from error
    if found is not opener:
        raise ValueError(f"{dotted} is another function than the one that was given")
    return dotted


def find_opener(dotted: str) -> Callable[..., OpenedEngines]:
    """Return the function of a name. Raises EngineError when there is none."""
    module, _, path = dotted.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise EngineError(f"{dotted} names no function that opens a model") from error
    if not callable(found):
        raise EngineError(f"{dotted} names no function that opens a model")
    return found
