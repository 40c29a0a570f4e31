"""A batch of tensors to the native request of each of its rows, and what is wrong with one back to its tensors' names.

Every door refuses the same things with the same words, because every door's requests become the same ones.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from foreframe_server.codec.documents import Document
from foreframe_server.codec.kserve import Inference, refusal
from foreframe_server.codec.kserve_models import (
    GOALS,
    METRIC,
    PRIORITY,
    SCORE,
    SEED,
    TIMEOUT,
    WEIGHTS,
    Path,
    TensorModel,
)
from foreframe_server.errors import Reason, ServiceError
from foreframe_server.schemas import MAX_DEADLINE_MS, MAX_SEED, MIN_DEADLINE_MS, Scalar
from foreframe_server.scores import TermKind

_US_PER_MS = 1000
_OBJECTIVES = "objectives"
_OBJECTIVE_POINTER = re.compile(r"/objectives/(\d+)(?:/(\w+))?")
_SELF = "."


def write_rows(inference: Inference, model: TensorModel) -> list[Document]:
    """Write the native request of each row. Raises InvalidRequest."""
    tensors = inference.tensors
    for spec in model.inputs:
        if spec.name not in tensors and not spec.is_optional:
            raise refusal(spec.name, "is missing")
    shared = dict(model.constants) | dict(_read_parameters(inference.parameters, model))
    documents: list[Document] = []
    for row in range(_count_rows(tensors, model.max_batch_size)):
        placed = {spec.path: tensors[spec.name][row] for spec in model.inputs if spec.path and spec.name in tensors}
        document = _nest({**shared, **placed})
        if model.name == SCORE:
            document[_OBJECTIVES] = _read_objectives(inference, row)
        documents.append(document)
    return documents


def _count_rows(tensors: Mapping[str, np.ndarray], most: int) -> int:
    first, *others = tensors
    count = len(tensors[first])
    for name in others:
        if len(tensors[name]) != count:
            raise refusal(name, f"has another batch than {first}", f"{count} rows", f"{len(tensors[name])} rows")
    if count > most:
        raise refusal(first, "has too many rows", f"a batch of 1 to {most}", f"{count} rows")
    return count


def _read_parameters(parameters: Mapping[str, Scalar], model: TensorModel) -> Iterator[tuple[Path, object]]:
    for name, value in parameters.items():
        if name not in model.parameters:
            raise refusal("parameters", "hold one that this model does not know", ", ".join(sorted(model.parameters)))
        if path := model.parameters[name]:
            yield from _READERS.get(name, _read_plainly)(path, value)
    if SEED in model.parameters and SEED not in parameters:
        # One seed for every row, so that the reply can tell it.
        yield model.parameters[SEED], secrets.randbelow(MAX_SEED + 1)


def _read_plainly(path: Path, value: Scalar) -> Iterator[tuple[Path, object]]:
    yield path, value


def _read_timeout(path: Path, value: Scalar) -> Iterator[tuple[Path, object]]:
    """Read microseconds, of which 0 means no deadline."""
    most = MAX_DEADLINE_MS * _US_PER_MS
    if type(value) is not int or not (value == 0 or MIN_DEADLINE_MS * _US_PER_MS <= value <= most):
        raise refusal(TIMEOUT, "is no budget", f"0, or microseconds, {MIN_DEADLINE_MS * _US_PER_MS}..{most}")
    if value:
        yield path, value // _US_PER_MS


def _read_priority(path: Path, value: Scalar) -> Iterator[tuple[Path, object]]:
    """Read Triton's levels: 0 is the default, 1 the most urgent, more is less."""
    if type(value) is not int or value < 0:
        raise refusal(PRIORITY, "is no level", "a whole number from 0")
    yield path, "controller" if value <= 1 else "bulk"


_READERS: Mapping[str, Callable[[Path, Scalar], Iterator[tuple[Path, object]]]] = {
    TIMEOUT: _read_timeout,
    PRIORITY: _read_priority,
}


def _nest(fields: Mapping[Path, object]) -> Document:
    document: Document = {}
    for path, value in fields.items():
        part = document
        for name in path[:-1]:
            inner = part.setdefault(name, {})
            if not isinstance(inner, dict):
                raise TypeError("a field lies inside a value")
            part = inner
        part[path[-1]] = value
    return document


def _read_objectives(inference: Inference, row: int) -> list[Document]:
    objectives = list(_objectives(inference, row))
    if not objectives:
        raise refusal("parameters", "name no objective", ", ".join([*GOALS.values(), *WEIGHTS.values()]))
    if METRIC in inference.parameters and GOALS[TermKind.GOAL_IMAGE] not in inference.tensors:
        raise refusal(METRIC, "is of a goal_image, and there is none")
    return objectives


def _objectives(inference: Inference, row: int) -> Iterator[Document]:
    """List the kinds that have a weight or whose goal is given."""
    for kind, weight_name in WEIGHTS.items():
        goal_name = GOALS.get(kind, "")
        if weight_name in inference.parameters or goal_name in inference.tensors:
            objective: Document = {"kind": kind.value, "params": _goal(inference, kind, goal_name, row)}
            if weight_name in inference.parameters:
                objective["weight"] = inference.parameters[weight_name]
            yield objective


def _goal(inference: Inference, kind: TermKind, name: str, row: int) -> Document:
    if kind is TermKind.GOAL_STATE and name in inference.tensors:
        return {"values": inference.tensors[name][row]}
    if kind is TermKind.GOAL_IMAGE:
        picture = {"image": {"data": inference.tensors[name][row]}} if name in inference.tensors else {}
        return {**picture, METRIC: inference.parameters.get(METRIC)}
    return {}


def rename(error: ServiceError, row: int, document: Document, model: TensorModel) -> ServiceError:
    """Say what is wrong with a row's native request in the words of its tensors and parameters."""
    return type(error)(
        error.detail,
        reasons=[_rename(reason, row, document, model) for reason in error.reasons],
        retry_after_ms=error.retry_after_ms,
    )


def _rename(reason: Reason, row: int, document: Document, model: TensorModel) -> Reason:
    pointer = _name_of(reason.pointer, row, document, model)
    return Reason(pointer, reason.message, reason.expected, reason.received)


def _name_of(pointer: str, row: int, document: Document, model: TensorModel) -> str:
    if not pointer:
        return ""
    objective = _OBJECTIVE_POINTER.match(pointer)
    if objective is not None:
        return _name_objective(document, int(objective[1]), objective[2])
    for spec in model.inputs:
        if rest := _below(pointer, spec.path):
            return f"{spec.name}/{row}{rest.removeprefix(_SELF)}"
    for name, path in model.parameters.items():
        if _below(pointer, path):
            return name
    for spec in model.inputs:
        if spec.path and "".join(f"/{part}" for part in spec.path).startswith(f"{pointer}/"):
            return spec.name
    return pointer


def _below(pointer: str, path: Path) -> str:
    """Return the pointer from a place on, `.` for the place itself, nothing for a pointer that leads elsewhere."""
    start = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path)
    if not path or not f"{pointer}/".startswith(f"{start}/"):
        return ""
    return pointer[len(start) :] or _SELF


def _name_objective(document: Document, place: int, part: str | None) -> str:
    objectives = document.get(_OBJECTIVES)
    objective = objectives[place] if isinstance(objectives, list) else {}
    kind = TermKind(str(objective["kind"]))
    return WEIGHTS[kind] if part != "params" else GOALS.get(kind, WEIGHTS[kind])
