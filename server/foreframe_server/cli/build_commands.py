"""`foreframe build` and its options. Imports typer alone, as `commands` does."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.options import JsonFlag


class Backend(StrEnum):
    """What can run a bundle's graphs."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TORCH = "torch"


def build(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder of a model bundle.", show_default="the built-in")
    ] = None,
    *,
    backend: Annotated[
        list[Backend] | None,
        typer.Option(help="What to build for; may be given often.", show_default="all that are here"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, or an architecture such as sm89 to build ahead of time for with TensorRT-RTX.",
            show_default="the GPU, else cpu",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp8"], typer.Option(help="What TensorRT computes large products in.")
    ] = "fp32",
    buckets: Annotated[
        str | None, typer.Option(help="Batch sizes of a forward, such as 1,4,16.", show_default="the bundle's")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the engines.", show_default="a folder beside the bundle")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Build engines, compare every way to run a model with torch, and find the fastest for this machine."""
    from foreframe_server.cli.build import Wish, build_model
    from foreframe_server.cli.overrides import read_private

    wish = Wish(tuple(backend or ()), device, precision, _read_buckets(buckets), cache)
    build_model(read_private(bundle), wish, is_json=json)


def _read_buckets(text: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter("is a list such as 1,4,16", param_hint="--buckets") from error
    if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
        raise typer.BadParameter("ascends from at least 1", param_hint="--buckets")
    return sizes
