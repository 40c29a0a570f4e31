"""Every command and its options. Imports typer alone: what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreframe_server.cli.faults import FaultLine

_MAX_SEED = 2**53 - 1

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
BundleOption = Annotated[
    Path | None, typer.Option(help="Folder of a model bundle; without it the built-in model.", show_default=False)
]
UrlOption = Annotated[
    str | None, typer.Option(help="Address of a running server, such as http://127.0.0.1:8000.", show_default=False)
]
ClipsOption = Annotated[
    int | None, typer.Option(min=2, help="How many clips.", show_default="100 of a data set, else all that ship")
]
SeedOption = Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Seed of every random choice.")]

app = typer.Typer(
    cls=FaultLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
world = typer.Typer(no_args_is_help=True, help="Make recorded episodes of the embedded world.")
train = typer.Typer(no_args_is_help=True, help="Train a model on recorded episodes.")
app.add_typer(world, name="world")
app.add_typer(train, name="train")


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


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", show_default="8000")
    ] = None,
    bundle: BundleOption = None,
    json: JsonFlag = False,
) -> None:
    """Serve a model over HTTP until Ctrl-C. Settings come from FOREFRAME_*; these options win."""
    from foreframe_server.cli.overrides import read_overridden
    from foreframe_server.cli.serve import serve_model

    serve_model(read_overridden(host=host, port=port, bundle=bundle), is_json=json)


@app.command()
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


@app.command()
def predict(
    recording: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT", help="An episode (.npz) or a file of clips.", show_default="the bundle's clips"
        ),
    ] = None,
    *,
    start: Annotated[int, typer.Option(min=0, help="First frame of the window, or number of the clip.")] = 0,
    url: UrlOption = None,
    bundle: BundleOption = None,
    out: Annotated[Path, typer.Option(help="Picture (.png) or film (.mp4) to write.")] = Path("prediction.png"),
    strategy: Annotated[Literal["sample", "posterior_mean"], typer.Option(help="How to predict.")] = "sample",
    ensemble: Annotated[
        int | None, typer.Option(min=1, help="How many samples to draw.", show_default="8, posterior_mean 1")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the model's")] = None,
    seed: SeedOption = 0,
    print_request: Annotated[
        bool, typer.Option("--print-request", help="Only print the JSON body of POST /v1/predictions, for curl.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Predict the future of a recorded window: in this process, or with --url by a running server."""
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.cli.predict import Wish, predict_recording, print_body

    if out.suffix not in {".png", ".mp4"}:
        raise typer.BadParameter("ends in .png or .mp4", param_hint="--out")
    if strategy == "posterior_mean" and ensemble not in {None, 1}:
        raise typer.BadParameter("the posterior mean is one evaluation; it has no ensemble", param_hint="--ensemble")
    size = ensemble or (8 if strategy == "sample" else 1)
    wish = Wish(recording, start, strategy=strategy, size=size, steps=steps, seed=seed)
    if print_request:
        print_body(wish, read_private(bundle))
    else:
        predict_recording(wish, read_private(bundle), url, out, is_json=json)


@app.command("eval")
def evaluate(
    *,
    data: Annotated[
        Path | None, typer.Option(help="Data set of held-out episodes; without it the bundle's clips.")
    ] = None,
    clips: ClipsOption = None,
    bundle: BundleOption = None,
    noise_plans: Annotated[
        bool, typer.Option("--noise-plans", help="Also compare antithetic with independent noise (minutes).")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Measure a model on clips it has never seen: PSNR, spread, what its states are for, latency over HTTP."""
    from foreframe_server.cli.evaluate import evaluate_model
    from foreframe_server.cli.overrides import read_private
    from foreframe_server.cli.report import print_report

    report = evaluate_model(read_private(bundle), data, clips, has_noise_plans=noise_plans)
    print_report(report, is_json=json)


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
    data: Annotated[Path, typer.Option(help="Data set to train on.")],
    validation: Annotated[Path, typer.Option(help="Data set to watch progress with.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there is continued.")],
    autoencoder_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the first stage.", show_default="the recipe's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the second stage.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Clips a step and process.", show_default="the recipe's")
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train the frame autoencoder, then the rollout model; under torchrun in several processes."""
    from foreframe_server.cli.train import Ask, train_model

    ask = Ask(autoencoder_steps=autoencoder_steps, steps=steps, batch_size=batch_size, seed=seed)
    train_model(data, validation, out, ask, is_json=json)


@app.command()
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


@app.command()
def models(*, url: UrlOption = None, bundle: BundleOption = None, json: JsonFlag = False) -> None:
    """List models and what they take and give: the ones here, or with --url a server's."""
    from foreframe_server.cli.models import list_models

    list_models(url, bundle, is_json=json)


@app.command()
def doctor(*, bundle: BundleOption = None, json: JsonFlag = False) -> None:
    """Check that this machine can serve; exit code 1 when something that serving needs is broken."""
    from foreframe_server.cli.doctor import examine

    if not examine(bundle, is_json=json):
        raise typer.Exit(1)
