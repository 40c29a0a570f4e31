"""A training run on the terminal: a bar on standard error, and its last numbers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from foreframe_server.cli.console import open_progress

if TYPE_CHECKING:
    from foreframe_models.training.loop import Progress


def watch_training(moments: "Iterator[Progress]", name: str, steps: int, *, is_shown: bool) -> dict[str, object]:
    """Train to the end; return the last numbers, none when the run had been finished before."""
    last: dict[str, object] = {}
    with open_progress(is_shown=is_shown) as bar:
        task = bar.add_task(name, total=steps, note="")
        for moment in moments:
            bar.update(task, completed=moment.step, note=f"loss {moment.loss:.4f}")
            if moment.metrics:
                measured = ", ".join(f"{metric} {value:.2f}" for metric, value in moment.metrics.items())
                bar.console.print(f"{name} {moment.step}: {measured}", highlight=False)
            last = {"step": moment.step, "loss": moment.loss, "seconds": moment.seconds, **moment.metrics}
        bar.update(task, completed=steps)
    return last
