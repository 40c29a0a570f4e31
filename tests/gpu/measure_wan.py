"""Measure the 5B's sizes with random weights on one GPU against diffusers, in one process, and write a report.

On a machine with a GPU, from the repository's root; no network, no checkpoint and no installed package is needed:

    PYTHONPATH=engines:server PYTHONUNBUFFERED=1 python3 tests/gpu/measure_wan.py --out docs/results

It needs numpy, jaxtyping, safetensors, torch and for the exports onnx, onnxscript; without diffusers what is compared
with it is said to be not measured. At most ten minutes: stages end when the time is up (`--minutes`), and the report,
`wan-<device>.json` and `.md`, is written after each. `--stages step,ensemble` measures these alone and keeps what the
report holds of the others. `--tiny` rehearses all of it on a CPU. Ceilings are measured in the same run, and ways are
timed in turns, so ratios hold; what differs from its reference is not timed.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from wan_bench import Bench, NotMeasured, peak_bytes
from wan_ensemble import ensemble
from wan_parts import Sizes, tiny_sizes
from wan_report import to_markdown
from wan_runtimes import runtimes
from wan_stages import parity, pictures, roofline, step

Stage = Callable[[Bench], dict[str, object]]

STAGES: Mapping[str, Stage] = {
    "parity": parity,
    "roofline": roofline,
    "step": step,
    "pictures": pictures,
    "ensemble": ensemble,
    "runtimes": runtimes,
}


def run_stage(stage: Stage, bench: Bench) -> dict[str, object]:
    """Run one stage; whatever happens in it is told, and the others go on."""
    started = time.monotonic()
    try:
        record: dict[str, object] = {"status": "measured", "found": stage(bench)}
    except NotMeasured as reason:
        record = {"status": f"not measured: {reason}"}
    except Exception as error:  # noqa: BLE001 - the report of the other stages matters more
        traceback.print_exc()
        record = {"status": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return record | {"seconds": round(time.monotonic() - started, 1), "peak_bytes": peak_bytes(bench.device)}


def describe(device: torch.device) -> dict[str, object]:
    """Say what it ran on."""
    facts: dict[str, object] = {"date": date.today().isoformat(), "torch": torch.__version__}
    facts["python"] = platform.python_version()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    else:
        facts["device"] = platform.machine()
    with suppress(PackageNotFoundError):
        facts["diffusers"] = version("diffusers")
    return facts


def measure(bench: Bench, names: list[str], path: Path) -> dict[str, object]:
    """Run stages and write the report after each; stages that are not run keep what the report has of them."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stages: dict[str, object] = dict(report.get("stages", {}))  # type: ignore[call-overload]
    for name in names:
        stages[name] = run_stage(STAGES[name], bench)
        report = {**describe(bench.device), "precision": bench.precision, "stages": stages}
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(to_markdown(report), encoding="utf-8")
        sys.stdout.write(f"{name}: {stages[name]['status']}, {stages[name]['seconds']} s\n")  # type: ignore[index]
    return report


def open_bench(arguments: argparse.Namespace) -> Bench:
    """Set up what the options say."""
    device, compiler = torch.device(arguments.device), "inductor"
    if arguments.tiny:
        compiler = "eager"  # traced and guarded as for any compiler, without minutes of C++
    return Bench(
        device,
        tiny_sizes() if arguments.tiny else Sizes(),
        compiler=None if arguments.no_compile else compiler,
        limit_s=60 * arguments.minutes,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--stages", type=partial(str.split, sep=","), default=list(STAGES), help=",".join(STAGES))
    parser.add_argument("--minutes", type=float, default=9.0, help="stages that would end later are left out")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to rehearse on a CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.stages if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = open_bench(arguments)
    measure(bench, arguments.stages, arguments.out / f"wan-{bench.device.type}.json")


if __name__ == "__main__":
    main()
