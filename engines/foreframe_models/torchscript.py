"""TorchScript archives run once, offline, and recorded as plain operator graphs. Knows no model.

An archive runs code of its own when it is used: it belongs to whoever converts it and never to a server.
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from foreframe_engines.errors import CheckpointError

Function = Callable[[Tensor], Any]
Operator = Callable[..., Any]


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Load an archive onto the processor, in evaluation mode and float32. Raises CheckpointError when it is none."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers its own export, which these predate
            script: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a TorchScript archive") from error
    return script.eval().float()


@torch.no_grad()
def run_single(function: Function, example: Tensor) -> Any:  # noqa: ANN401 - whatever the function returns
    """Run a function in float32 on the processor, whatever types and devices are written into its scripts."""
    with _SinglePrecision():  # type: ignore[no-untyped-call]
        return function(example)


@torch.no_grad()
def record(function: Function, name: str, example: Tensor) -> fx.GraphModule:
    """Run a function of one tensor in float32 and record what was done to it, for inputs of the example's shape.

    name: of the graph's input. What does not depend on the input becomes a constant. The function returns one tensor.
    """
    recording = _Recording(name, example)
    with recording:
        output = function(example)
    return recording.finish(output)


class _SinglePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes every tensor that half precision or another device is asked for float32 on the processor."""

    def __torch_dispatch__(
        self, func: Operator, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        del types
        return func(*args, **_on_processor(kwargs or {}))


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, name: str, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants = nn.Module()
        # Weak, so that what the function itself has let go of is freed.
        self._nodes, self._known = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._nodes[example] = self._graph.placeholder(name)

    def __torch_dispatch__(
        self, func: Operator, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        del types
        func, args = _exportable(func, args)
        kwargs = _on_processor(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor in self._nodes for tensor in tensors):
            return func(*args, **kwargs)
        node_args, node_kwargs = pytree.tree_map(self._node, (args, kwargs))
        node, result = self._graph.call_function(func, node_args, node_kwargs), func(*args, **kwargs)
        self._keep(result, node)
        return result

    def finish(self, output: Tensor) -> fx.GraphModule:
        """End the graph with its output."""
        self._graph.output(self._node(output))
        return fx.GraphModule(self._constants, self._graph)

    def _node(self, value: Any) -> Any:  # noqa: ANN401 - any argument of an operator
        if not isinstance(value, Tensor):
            return value
        if value in self._nodes:
            return self._nodes[value]
        if value not in self._known:
            name = f"constant_{len(list(self._constants.buffers()))}"
            self._constants.register_buffer(name, value.detach().clone())
            self._known[value] = self._graph.get_attr(name)
        return self._known[value]

    def _keep(self, result: Tensor | tuple[Tensor, ...] | list[Tensor], node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._nodes[result] = node
            return
        for index, part in enumerate(result):
            self._nodes[part] = self._graph.call_function(operator.getitem, (node, index))


def _on_processor(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(kwargs)
    if changed.get("dtype") in (torch.bfloat16, torch.float16):
        changed["dtype"] = torch.float32
    if changed.get("device") is not None:
        changed["device"] = torch.device("cpu")
    return changed


def _exportable(func: Operator, args: tuple[Any, ...]) -> tuple[Operator, tuple[Any, ...]]:
    """Replace the convolution that only archives call by the one that exporters know, which takes fewer arguments."""
    if func is torch.ops.aten._convolution.default:  # noqa: SLF001 - the operator's name
        return torch.ops.aten.convolution.default, args[:9]
    return func, args
