"""Measure the embedded model's solver step on one device against ONNX Runtime on the CPU, and write a report.

    python tests/gpu/measure_embedded.py --device cuda --out docs/results

Needs torch and this package, no network. Times are medians of interleaved rounds in one process, so ratios hold on a
noisy machine; every way of running is compared with ONNX Runtime's CPU latents before it is timed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from foreframe_engines import Bundle, NoisePlan, StepRow, builtin_bundle, member_noise, open_rollout_engine
from foreframe_engines.episodes import load_clips
from foreframe_models.export import graphs_of
from foreframe_models.reference import load_models

BATCHES = (1, 4, 20)
ROUNDS = 15
MAX_LATENT_ERROR = 1e-3

Inputs = dict[str, torch.Tensor]
Run = Callable[[], torch.Tensor]


def build_rows(bundle: Bundle, count: int) -> tuple[list[StepRow], np.ndarray]:
    """Return `count` first steps of one held-out clip, and what ONNX Runtime's CPU makes of them."""
    engine = open_rollout_engine(bundle, num_threads=2)
    clip = load_clips(bundle.path / "clips.npz")[0]
    conditioning = engine.condition(engine.encode(clip.frames[: engine.contract.context_frames]), clip.states)
    noises = [member_noise(0, k, engine.noise_shape(), NoisePlan.ANTITHETIC) for k in range(count)]
    rows = [StepRow(engine.initial_latents(conditioning, noise), 1.0, 0.75, conditioning) for noise in noises]
    largest = engine.contract.buckets[-1]
    groups = [rows[start : start + largest] for start in range(0, count, largest)]
    return rows, np.stack([latents for group in groups for latents in engine.step(group)])


def to_inputs(bundle: Bundle, rows: Sequence[StepRow], device: torch.device) -> Inputs:
    """Stack rows into the step graph's inputs on a device."""
    num_context = bundle.contract.context_frames
    latents = torch.from_numpy(np.stack([row.latents for row in rows]))
    is_future = (torch.arange(latents.shape[1]) >= num_context).float().expand(len(rows), -1)
    inputs = {"latents": latents, "time": is_future * rows[0].time, "next_time": is_future * rows[0].next_time}
    for name, table in rows[0].conditioning.tables.items():
        inputs[name] = torch.from_numpy(table).expand(len(rows), *table.shape[1:]).contiguous()
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def capture(step: torch.nn.Module, inputs: Inputs) -> Run:
    """Record one step as a CUDA graph; the inputs' memory is fixed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(**inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step(**inputs)

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def ways_of(step: torch.nn.Module, inputs: Inputs, *, is_compiled: bool) -> dict[str, Run]:
    """Return the ways of running a step that this device has."""
    ways: dict[str, Run] = {"torch eager": partial(step, **inputs)}
    if is_compiled:
        ways["torch.compile"] = partial(torch.compile(step), **inputs)
    if inputs["latents"].is_cuda:
        ways["CUDA graph"] = capture(step, inputs)
    return ways


def time_ways(ways: dict[str, Run], device: torch.device) -> dict[str, float]:
    """Return the median ms of each way, measured in turn, round after round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            taken[name].append((time.perf_counter() - started) * 1000)
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def measure(device: torch.device, *, is_compiled: bool) -> dict[str, object]:
    """Check and time every batch size; raises AssertionError when latents differ too much to be timed."""
    bundle = Bundle.open(builtin_bundle())
    step = graphs_of(load_models(bundle.path), bundle.contract)["step"].module.to(device).eval()
    torch.backends.cuda.matmul.allow_tf32 = False
    results = []
    for batch in BATCHES:
        rows, expected = build_rows(bundle, batch)
        ways = ways_of(step, to_inputs(bundle, rows, device), is_compiled=is_compiled)
        errors = {name: float(np.abs(run().cpu().numpy() - expected).max()) for name, run in ways.items()}
        assert max(errors.values()) <= MAX_LATENT_ERROR, errors
        results.append({"batch": batch, "max_abs_error": errors, "ms": time_ways(ways, device)})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"date": date.today().isoformat(), "device": name, "torch": torch.__version__, "step": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON report")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    report = measure(torch.device(arguments.device), is_compiled=not arguments.no_compile)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"step-{torch.device(arguments.device).type}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
