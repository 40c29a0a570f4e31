"""`foreframe convert` and its options. Imports typer alone: what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.options import JsonFlag

convert = typer.Typer(no_args_is_help=True, help="Turn other people's model files into what this server runs.")


@convert.command("cosmos-tokenizer")
def convert_cosmos_tokenizer(
    encoder: Annotated[Path, typer.Argument(help="TorchScript encoder of a discrete Cosmos video tokenizer.")],
    decoder: Annotated[Path, typer.Argument(help="Its decoder.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer; what is in it is replaced.")],
    size: Annotated[int, typer.Option(min=8, help="Height and width of a frame.")] = 256,
    window: Annotated[int, typer.Option(min=1, help="Frames that are tokenised together.")] = 17,
    json: JsonFlag = False,
) -> None:
    """Record NVIDIA's TorchScript as graphs, and check them against it. The archives run code: know their source."""
    from foreframe_server.cli import convert as work

    work.convert_cosmos_tokenizer(encoder, decoder, out, size, window, is_json=json)


@convert.command("st-transformer")
def convert_st_transformer(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with model.json, model.safetensors and stats.json.")],
    *,
    tokenizer: Annotated[Path, typer.Option(help="Folder that `convert cosmos-tokenizer` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; what is in it is replaced.")],
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="st-transformer-cosmos")] = None,
    revision: Annotated[str, typer.Option(help="The model's revision.")] = "1",
    json: JsonFlag = False,
) -> None:
    """Write a token model and its tokenizer as a bundle that tells likelihoods and predicts no frames."""
    from foreframe_server.cli import convert as work

    work.convert_st_transformer(checkpoint, tokenizer, out, name, revision, is_json=json)


@convert.command("wan")
def convert_wan(
    base: Annotated[Path, typer.Argument(help="Wan pipeline in diffusers' layout, such as Wan2.2-TI2V-5B's.")],
    *,
    adapter: Annotated[Path, typer.Option(help="LoRA and state branch: a file, or a peft or diffusers folder.")],
    statistics: Annotated[Path, typer.Option(help="The training states' statistics: stats.json.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; what is in it is replaced.")],
    prompt: Annotated[
        Path | None, typer.Option(help="Embedded prompt.", show_default="the empty text, by the base's encoder")
    ] = None,
    negative_prompt: Annotated[Path | None, typer.Option(help="Embedded prompt that guidance moves away from.")] = None,
    combination: Annotated[
        Literal["additive", "multiplicative"], typer.Option(help="Of an adapter that does not say it.")
    ] = "additive",
    height: Annotated[int, typer.Option(min=8, help="Of a frame.")] = 512,
    width: Annotated[int, typer.Option(min=8, help="Of a frame.")] = 512,
    context: Annotated[int, typer.Option(min=1, help="Frames that are seen: 1 and a multiple of 4.")] = 5,
    horizon: Annotated[int, typer.Option(min=4, help="Frames that are predicted: a multiple of 4.")] = 16,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second.")] = 7.5,
    solver: Annotated[Literal["euler", "unipc"], typer.Option(help="How members are stepped.")] = "euler",
    steps: Annotated[int, typer.Option(min=1, help="Solver steps where a request says nothing.")] = 10,
    shift: Annotated[float, typer.Option(min=0.01, help="The flow's shift.")] = 5.0,
    prompt_length: Annotated[int, typer.Option(min=1, help="Rows of an embedded prompt.")] = 512,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="wan2.2-ti2v-5b-state")] = None,
    revision: Annotated[str, typer.Option(help="The model's revision.")] = "1",
    json: JsonFlag = False,
) -> None:
    """Merge an adapter into a Wan base and write both, with the autoencoder, as a bundle."""
    from foreframe_server.cli.convert_wan import convert_wan_model
    from foreframe_server.cli.faults import needs_torch

    with needs_torch():
        from foreframe_engines.solvers import Solver
        from foreframe_models.state_branch import Combination
        from foreframe_models.wan_bundle import FAMILY, WanServing, WanSources

    sources = WanSources(base, adapter, prompt, negative_prompt, Combination(combination))
    serving = WanServing(
        model=name or FAMILY,
        revision=revision,
        height=height,
        width=width,
        context_frames=context,
        horizon=horizon,
        fps=fps,
        solver=Solver(solver),
        steps=steps,
        shift=shift,
        prompt_length=prompt_length,
    )
    convert_wan_model(sources, serving, statistics, out, is_json=json)
