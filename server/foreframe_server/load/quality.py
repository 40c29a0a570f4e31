"""How good answers are for the time that they take: a server asked about clips at many sizes, in turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeAlias

import numpy as np

from foreframe_engines.episodes import Clip
from foreframe_server.intervals import Resamples
from foreframe_server.load.door import Door, UnfitServer
from foreframe_server.load.generator import play
from foreframe_server.load.questions import Content, write_question
from foreframe_server.load.traces import Arrival, Ask
from foreframe_server.measures import SSIM_WINDOW, psnr_db, ssim
from foreframe_server.plots import Chart, Curve, Panel
from foreframe_server.reports.report import Report
from foreframe_server.reports.samples import Samples

Note: TypeAlias = Callable[[str], None]
_PANELS = {
    "psnr_db": ("closeness", "PSNR, dB"),
    "ssim": ("structure", "SSIM"),
    "spread": ("sample spread", "of white"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to ask. steps: of each member, None for the posterior mean's one evaluation."""

    members: int = 1
    steps: int | None = None

    @property
    def name(self) -> str:
        """Say it in words."""
        if self.steps is None:
            return "posterior mean"
        return f"{self.members} member{'s' * (self.members > 1)}, {self.steps} step{'s' * (self.steps > 1)}"

    @property
    def ask(self) -> Ask:
        """Ask so, past the cache."""
        if self.steps is None:
            return Ask(strategy="posterior_mean", cache="bypass")
        return Ask(self.members, self.steps, cache="bypass")


@dataclass(frozen=True, slots=True)
class QualityPlan:
    """Which ensemble sizes and numbers of steps, on how many clips, how often."""

    members: tuple[int, ...]
    steps: tuple[int, ...]
    clips: int
    rounds: int

    @property
    def settings(self) -> list[Setting]:
        """List the posterior mean and every combination."""
        return [Setting(), *(Setting(members, steps) for steps in self.steps for members in self.members)]


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer: how long it took, and what it shows, as means over frames. ssim: None below its window's size.

    spread: None for fewer than two members, where white is 1.
    """

    latency_ms: float
    psnr_db: float
    ssim: float | None
    spread: float | None


Answers: TypeAlias = Mapping[Setting, Sequence[Shown]]
"""Of every clip, round after round."""


async def measure_quality(
    door: Door, plan: QualityPlan, clips: Sequence[Clip], note: Note
) -> dict[Setting, list[Shown]]:
    """Ask about every clip at every setting in turn. Raises UnfitServer for what is not answered."""
    found: dict[Setting, list[Shown]] = {setting: [] for setting in plan.settings}
    for setting in plan.settings:
        await _ask(door, setting, clips[0])
    for number in range(plan.rounds):
        for place, clip in enumerate(clips):
            note(f"round {number + 1} of {plan.rounds}, clip {place + 1} of {len(clips)}")
            for setting in plan.settings:
                found[setting].append(await _ask(door, setting, clip))
    return found


async def _ask(door: Door, setting: Setting, clip: Clip) -> Shown:
    kept: list[np.ndarray] = []
    content = Content(clip.frames[: door.sizes.context_frames], clip.states, clip_seed(clip))
    body = write_question(door.sizes, setting.ask, content)
    (record,) = await play([Arrival(0.0, setting.ask, 0)], lambda _: door.prepare_kept(body, kept.append))
    if not kept:
        raise UnfitServer(f"{setting.name} was not answered: {record.reply.code}")
    truth = clip.frames[-len(kept[0]) :]
    structure = float(ssim(kept[0], truth).mean()) if min(truth.shape[1:3]) >= SSIM_WINDOW else None
    return Shown(record.latency_ms, float(psnr_db(kept[0], truth).mean()), structure, record.reply.spread)


def clip_seed(clip: Clip) -> int:
    """Return the seed that a clip is asked with, as in evaluations."""
    return clip.seed * 1000 + clip.start


def report_quality(plan: QualityPlan, clips: Sequence[Clip], found: Answers) -> Report:
    """Sum the answers up; intervals are of 95 %, over episodes."""
    episodes = [clip.seed for _ in range(plan.rounds) for clip in clips]
    resamples = Resamples.of(episodes)
    settings = [
        {"setting": setting.name, "members": setting.members, "steps": setting.steps, **_means(shown, resamples)}
        for setting, shown in found.items()
    ]
    asked = {"members": plan.members, "steps": plan.steps, "clips": plan.clips, "rounds": plan.rounds}
    record = {"episodes": len(set(episodes)), "settings": settings}
    samples = [each for setting, shown in found.items() for each in _samples(setting, shown, episodes)]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    return Report(
        "bench quality-latency", plain, record, samples, [_chart(plan, found)], [clip_seed(clip) for clip in clips]
    )


def _means(shown: Sequence[Shown], resamples: Resamples) -> dict[str, object]:
    means: dict[str, object] = {"latency_p50_ms": round(median(each.latency_ms for each in shown), 3)}
    for name in _PANELS:
        values = [getattr(each, name) for each in shown]
        means[name] = None if None in values else resamples.mean(np.array(values)).record()
    return means


def _samples(setting: Setting, shown: Sequence[Shown], episodes: Sequence[int]) -> list[Samples]:
    latencies = tuple(each.latency_ms for each in shown)
    errors = tuple(10 ** (-each.psnr_db / 10) for each in shown)
    return [
        Samples(f"latency, {setting.name}", "ms", "lower", latencies, statistic="median"),
        Samples(f"squared error, {setting.name}", "of white", "lower", errors, tuple(episodes)),
    ]


def _chart(plan: QualityPlan, found: Answers) -> Chart:
    return {
        "title": "Quality against latency",
        "note": "a curve is one number of solver steps, with more and more members; medians and means over clips",
        "x_label": "",
        "panels": [_panel(plan, found, name) for name in _PANELS],
    }


def _panel(plan: QualityPlan, found: Answers, measure: str) -> Panel:
    title, label = _PANELS[measure]
    groups = {"posterior mean": [Setting()]}
    groups |= {
        f"{steps} step{'s' * (steps > 1)}": [Setting(members, steps) for members in plan.members]
        for steps in plan.steps
    }
    curves = [_curve(name, settings, found, measure, colour) for colour, (name, settings) in enumerate(groups.items())]
    return {
        "title": title,
        "x_label": "median latency, ms",
        "y_label": label,
        "x_scale": "log",
        "series": [curve for curve in curves if curve["x"]],
    }


def _curve(name: str, settings: Sequence[Setting], found: Answers, measure: str, colour: int) -> Curve:
    known = [setting for setting in settings if all(getattr(each, measure) is not None for each in found[setting])]
    return {
        "label": name,
        "colour": colour,
        "x": [median(each.latency_ms for each in found[setting]) for setting in known],
        "y": [fmean(getattr(each, measure) for each in found[setting]) for setting in known],
    }
