"""What every call of an engine computes, by torch's own counter: each graph counts where it runs, in any thread."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foreframe_engines.bundle import Bundle
from foreframe_engines.rollout import GraphRolloutEngine
from foreframe_models.export import picture_graphs_of
from foreframe_models.rollout_graphs import flow_graphs_of
from foreframe_models.roofline import Work
from foreframe_models.torch_engine import TorchOptions, load_models_onto, run_graphs


class Tally:
    """Adds up the work of forwards."""

    def __init__(self) -> None:
        self._sum = Work(0.0, 0.0)

    def add(self, work: Work) -> None:
        """Add a forward's."""
        self._sum += work

    def of(self, call: Callable[[], object]) -> Work:
        """Return what a call alone computes."""
        self._sum = Work(0.0, 0.0)
        call()
        return self._sum


class _Counted(nn.Module):
    def __init__(self, module: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.module = module
        self._tally = tally

    def forward(self, *inputs: Tensor) -> object:
        # The counter knows the plain kernel of attention alone, on a CPU; its batched products are attention's.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs = self.module(*inputs)
        self._tally.add(_read(counter))
        return outputs


def open_counted_engine(bundle_path: Path) -> tuple[GraphRolloutEngine, Tally]:
    """Open a bundle's rollout model on torch, in float32 on the CPU, and what counts its work. Raises BundleError."""
    options, tally = TorchOptions(), Tally()
    bundle = Bundle.open(bundle_path)
    models = load_models_onto(bundle_path, options)
    graphs = picture_graphs_of(models) | flow_graphs_of(models.rollout, solver=bundle.contract.sampler.solver)
    counted = {name: replace(graph, module=_Counted(graph.module, tally)) for name, graph in graphs.items()}
    return run_graphs(bundle.contract, counted, options), tally


def _read(counter: FlopCounterMode) -> Work:
    counts = {str(operation): float(count) for operation, count in counter.get_flop_counts().get("Global", {}).items()}
    attention = sum(count for name, count in counts.items() if "bmm" in name or "attention" in name)
    convolutions = sum(count for name, count in counts.items() if "convolution" in name)
    return Work(sum(counts.values()) - attention - convolutions, attention, convolutions)
