"""Every command and its options. Imports typer alone: what a command needs is imported when it runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.bench_commands import bench
from foreframe_server.cli.build_commands import build
from foreframe_server.cli.capacity_commands import capacity
from foreframe_server.cli.convert_commands import convert
from foreframe_server.cli.evaluate_commands import evaluate
from foreframe_server.cli.faults import FaultLine
from foreframe_server.cli.keys_commands import keys
from foreframe_server.cli.models_commands import models
from foreframe_server.cli.options import (
    BundleOption,
    CameraOption,
    ClipsOption,
    ContextGridsOption,
    EpisodeOption,
    JsonFlag,
    OutOption,
    PadFlag,
    SeedOption,
    TargetGridsOption,
    UrlOption,
    refuse_options,
    require_option,
)
from foreframe_server.cli.replay_commands import replay

app = typer.Typer(
    cls=FaultLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
world = typer.Typer(no_args_is_help=True, help="Make recorded episodes of the embedded world.")
train = typer.Typer(no_args_is_help=True, help="Train a model on recorded episodes.")


def _print_version(is_asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("foreframe"))
        except PackageNotFoundError:
            typer.echo("not installed")
        raise typer.Exit


@app.callback()
def foreframe(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the installed version.")
    ] = False,
) -> None:
    """Serve robot world models: predicted frames, how sure they are, and what they cost."""


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", show_default="8000")
    ] = None,
    bundle: BundleOption = None,
    backend: Annotated[
        Literal["auto", "torch"] | None,
        typer.Option(help="ONNX Runtime and what `foreframe build` made, or torch.", show_default="auto"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where torch runs, such as cuda.", show_default="cpu")] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(help="What torch multiplies in.", show_default="fp32")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Folder to record every prediction into, as MCAP.", show_default=False)
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Serve a model over HTTP until Ctrl-C. Settings come from FOREFRAME_*; these options win."""
    from foreframe_server.cli.overrides import read_overridden
    from foreframe_server.cli.serve import serve_model

    engine = {"backend": backend, "device": device, "precision": precision}
    settings = read_overridden(host=host, port=port, bundle=bundle, engine=engine, record=record)
    serve_model(settings, is_json=json)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the report.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=2, help="How many of the bundle's held-out clips.")] = 6,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server running until Ctrl-C.")] = False,
    bundle: BundleOption = None,
    json: JsonFlag = False,
) -> None:
    """Start a server, send it clips it has never seen over HTTP, and show what it predicts."""
    from foreframe_server.cli.demo import show_demo
    from foreframe_server.cli.overrides import read_private

    show_demo(read_private(bundle), out, clips, is_kept=keep, is_json=json)


def predict(
    recording: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="A file of clips or a recording: an episode (.npz), a LeRobot v3 data set, 1X raw shards, "
            "an MCAP file, a folder of frames and states.",
            show_default="the bundle's clips",
        ),
    ] = None,
    *,
    start: Annotated[int, typer.Option(min=0, help="First frame of the window, or number of the clip.")] = 0,
    episode: EpisodeOption = 0,
    camera: CameraOption = None,
    pad: PadFlag = False,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: Annotated[Path, typer.Option(help="Picture (.png) or film (.mp4) to write.")] = Path("prediction.png"),
    mcap: Annotated[Path | None, typer.Option(help="MCAP file (.mcap) to write too.", show_default=False)] = None,
    rerun: Annotated[Path | None, typer.Option(help="Rerun file (.rrd) to write too.", show_default=False)] = None,
    strategy: Annotated[Literal["sample", "posterior_mean"], typer.Option(help="How to predict.")] = "sample",
    ensemble: Annotated[
        int | None, typer.Option(min=1, help="How many members to draw.", show_default="8, posterior_mean 1")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")] = None,
    seed: SeedOption = 0,
    print_request: Annotated[
        bool, typer.Option("--print-request", help="Only print the JSON body of POST /v1/predictions, for curl.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Predict the future of a recorded window: in this process, or with --url by a running server."""
    from foreframe_server.cli.clips import Place
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.cli.predict import Outputs, Wish, predict_recording, print_body

    if out.suffix not in {".png", ".mp4"}:
        raise typer.BadParameter("ends in .png or .mp4", param_hint="--out")
    if strategy == "posterior_mean" and ensemble not in {None, 1}:
        raise typer.BadParameter("the posterior mean is one evaluation; it has no ensemble", param_hint="--ensemble")
    size = ensemble or (8 if strategy == "sample" else 1)
    place = Place(start, episode, camera, is_padded=pad)
    wish = Wish(recording, place, strategy=strategy, size=size, steps=steps, seed=seed)
    if print_request:
        print_body(wish, read_private(bundle))
    else:
        predict_recording(wish, read_private(bundle), url, Outputs(out, mcap, rerun), is_json=json)


@world.command("generate")
def generate_world(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the data set.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")],
    seed_start: Annotated[
        int, typer.Option(min=0, max=99_999_999, help="First seed: from 7,000,000 validation, from 8,000,000 test.")
    ] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames an episode, at 15 a second.")] = 64,
    size: Annotated[int, typer.Option(min=16, help="Height and width of a frame.")] = 64,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    json: JsonFlag = False,
) -> None:
    """Simulate and render episodes; seeds that are there already are kept."""
    from foreframe_server.cli.world import generate_episodes

    generate_episodes(out, range(seed_start, seed_start + episodes), frames, size, workers, is_json=json)


@train.command("rollout")
def train_rollout(
    *,
    config: Annotated[
        Literal["eve-tabletop", "wan2.2-1x"],
        typer.Option(help="What to train: the built-in model, or an adapter of Wan2.2-TI2V-5B as in the paper."),
    ] = "eve-tabletop",
    data: Annotated[Path, typer.Option(help="Data set to train on; for wan2.2-1x a folder of 1X raw shards.")],
    validation: Annotated[
        Path | None, typer.Option(help="Data set to watch progress with; wan2.2-1x can do without.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there is continued.")],
    base: Annotated[
        Path | None, typer.Option(help="wan2.2-1x: folder of the base, in diffusers' layout.", show_default=False)
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="wan2.2-1x: the embedded prompt.", show_default="the base's text encoder embeds an empty one"
        ),
    ] = None,
    autoencoder_steps: Annotated[
        int | None, typer.Option(min=1, help="eve-tabletop: steps of the first stage.", show_default="the recipe's")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the model.", show_default="the recipe's")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Clips a step, shared by the processes.", show_default="the recipe's")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="wan2.2-1x: clips a forward; a step adds several up.", show_default="1")
    ] = None,
    state_dropout: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="wan2.2-1x: share of clips that lose their states, for guidance.")
    ] = 0.0,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train a rollout model; in several processes under torchrun, or for wan2.2-1x under accelerate."""
    if config == "wan2.2-1x":
        from foreframe_server.cli import train_wan

        refuse_options(config, {"--autoencoder-steps": autoencoder_steps})
        wan = train_wan.Ask(steps, batch_size, micro_batch_size, state_dropout, seed)
        sources = train_wan.Sources(require_option("--base", base), data, validation, prompt)
        train_wan.train_wan_adapter(sources, out, wan, is_json=json)
        return
    from foreframe_server.cli.train import Ask, train_rollout_model

    refuse_options(
        config,
        {
            "--base": base,
            "--prompt": prompt,
            "--micro-batch-size": micro_batch_size,
            "--state-dropout": state_dropout or None,
        },
    )
    ask = Ask(codec_steps=autoencoder_steps, steps=steps, batch_size=batch_size, seed=seed)
    train_rollout_model(data, require_option("--validation", validation), out, ask, is_json=json)


@train.command("likelihood")
def train_likelihood(
    *,
    config: Annotated[
        Literal["eve-tabletop", "1x-cosmos"],
        typer.Option(help="What to train: the built-in model, or the paper's on tokenised 1X shards."),
    ] = "eve-tabletop",
    data: Annotated[Path, typer.Option(help="Data set to train on; for 1x-cosmos a folder of tokenised 1X shards.")],
    validation: Annotated[
        Path | None, typer.Option(help="Data set to watch progress with; 1x-cosmos can do without.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there is continued.")],
    recipe: Annotated[
        Path | None, typer.Option(help="1x-cosmos: a recipe.json to train by.", show_default="the paper's")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.0, help="1x-cosmos: how often each clip is seen.", show_default="80")
    ] = None,
    tokenizer_steps: Annotated[
        int | None, typer.Option(min=1, help="eve-tabletop: steps of the first stage.", show_default="the recipe's")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the model.", show_default="the recipe's")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="1x-cosmos: clips a forward; a step adds several up.", show_default="4")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Clips a step, shared by the processes.", show_default="the recipe's")
    ] = None,
    own_input: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Scheduled sampling: final share of ids the model draws itself.")
    ] = 0.0,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train the tokenizer, then the likelihood model, of 1x-cosmos the latter alone; under torchrun in processes."""
    if config == "1x-cosmos":
        from foreframe_server.cli import train_tokens

        refuse_options(config, {"--tokenizer-steps": tokenizer_steps})
        tokens = train_tokens.Ask(recipe, epochs, steps, batch_size, micro_batch_size, own_input, seed)
        train_tokens.train_token_model(data, validation, out, tokens, is_json=json)
        return
    from foreframe_server.cli.train import Ask, train_likelihood_model

    refuse_options(config, {"--recipe": recipe, "--epochs": epochs, "--micro-batch-size": micro_batch_size})
    ask = Ask(codec_steps=tokenizer_steps, steps=steps, batch_size=batch_size, seed=seed, own_input=own_input)
    train_likelihood_model(data, require_option("--validation", validation), out, ask, is_json=json)


def export(
    *,
    run: Annotated[Path, typer.Option(help="Folder of a finished training run.")],
    data: Annotated[Path, typer.Option(help="Data set of test episodes; some of its clips are shipped.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; what is in it is replaced.")],
    report: Annotated[
        Path | None, typer.Option(help="What `eval --json` printed, for the model card.", show_default=False)
    ] = None,
    revision: Annotated[str, typer.Option(help="The model's revision.")] = "1",
    json: JsonFlag = False,
) -> None:
    """Write a training run as a bundle that can be served."""
    from foreframe_server.cli.export import export_run

    export_run(run, data, out, report, revision, is_json=json)


def calibrate(
    *,
    data: Annotated[Path, typer.Option(help="Data set of held-out episodes, best the validation set.")],
    clips: ClipsOption = None,
    context_grids: ContextGridsOption = 4,
    target_grids: TargetGridsOption = 8,
    bundle: BundleOption = None,
    coverage: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Share of held-out clips that keep the bounds of the spread.")
    ] = 0.95,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change the built-in bundle itself.")] = False,
    json: JsonFlag = False,
) -> None:
    """Measure what spread and surprise are usual on held-out episodes and write it into a bundle (a new digest)."""
    from foreframe_server.cli.calibrate import Ask, calibrate_bundle
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.experiments.token_clips import Split

    ask = Ask(data, clips, Split(context_grids, target_grids), coverage, in_place)
    calibrate_bundle(read_private(bundle), ask, is_json=json)


def plan(
    *,
    goals: Annotated[int, typer.Option(min=1, help="How many goals.")] = 20,
    candidates: Annotated[int, typer.Option(min=2, help="Plans a round.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of /v1/scores a goal and strategy.")] = 3,
    metric: Annotated[
        Literal["pixel", "latent"], typer.Option(help="How predicted pictures are compared with the goal.")
    ] = "pixel",
    strategy: Annotated[
        list[str] | None, typer.Option(help="Compare only these; may be given often.", show_default="all")
    ] = None,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Move the simulated robot's hands to goal pictures, planning with a server's scores; compare the strategies."""
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.cli.plan import Wish, plan_goals
    from foreframe_server.experiments.plans import name_strategies

    unknown = set(strategy or ()) - set(name_strategies(metric))
    if unknown:
        raise typer.BadParameter(f"is one of {', '.join(name_strategies(metric))}", param_hint="--strategy")
    wish = Wish(goals, candidates, rounds, seed, metric, tuple(strategy or ()))
    plan_goals(read_private(bundle), url, wish, out, is_json=json)


def doctor(*, bundle: BundleOption = None, json: JsonFlag = False) -> None:
    """Check that this machine can serve; exit code 1 when something that serving needs is broken."""
    from foreframe_server.cli.doctor import examine

    if not examine(bundle, is_json=json):
        raise typer.Exit(1)


_COMMANDS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "Serve": (serve, demo, doctor),
    "Predict": (predict, replay),
    "Measure": (plan, capacity),
    "Make a model": (export, calibrate, build),
}
_GROUPS: Mapping[str, Mapping[str, typer.Typer]] = {
    "Measure": {"eval": evaluate, "bench": bench},
    "Make a model": {"world": world, "train": train, "convert": convert},
    "Operate": {"keys": keys, "models": models},
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
for _panel, _groups in _GROUPS.items():
    for _name, _group in _groups.items():
        app.add_typer(_group, name=_name, rich_help_panel=_panel)
