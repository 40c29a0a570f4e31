"""Whether a server's answers are right: clips asked about under load, and what a plain loop with the same weights says.

How near answers are to what happened stands beside it, for the server and for the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

from foreframe_engines.episodes import Clip
from foreframe_server.load.door import Door, UnfitServer
from foreframe_server.load.generator import Prepare, Send, play
from foreframe_server.load.questions import Content, write_question
from foreframe_server.load.traces import Arrival, Ask
from foreframe_server.measures import SSIM_WINDOW, psnr_db, ssim

Frames: TypeAlias = UInt8[np.ndarray, "f h w 3"]

MIN_PARITY_DB = 40.0
"""Below this PSNR against the reference's answer one is wrong, unless a plan says otherwise."""

_EQUAL_DB = 100.0
"""What the PSNR of equal frames is said to be."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """One clip, the seed that it is asked with, and the reference's answer to its whole future (RGB 0..255)."""

    clip: Clip
    seed: int
    answer: Frames


@dataclass(frozen=True, slots=True)
class Grade:
    """How near one clip's answer is to the reference's, and both to what happened. PSNR in dB, of its worst frame.

    A grade of None: there was no answer, or one of another shape. ssim: None for frames smaller than its window.
    """

    parity_db: float | None
    psnr_db: float | None
    reference_psnr_db: float
    ssim: float | None
    reference_ssim: float | None


@dataclass(frozen=True, slots=True)
class Grades:
    """The grades of every clip. An answer below `min_parity_db` is wrong."""

    clips: Sequence[Grade]
    min_parity_db: float

    @property
    def wrong(self) -> list[str]:
        """Say which answers are missing or not the reference's."""
        parities = [grade.parity_db for grade in self.clips if grade.parity_db is not None]
        below = [parity for parity in parities if parity < self.min_parity_db]
        said = []
        if missing := len(self.clips) - len(parities):
            said.append(f"{missing} of {len(self.clips)} clips were not answered, or not in full")
        if below:
            words = f"down to {min(below):.1f} dB of the reference's"
            said.append(f"{len(below)} of {len(self.clips)} answers are wrong: {words}")
        return said

    def facts(self) -> dict[str, object]:
        """Return means over clips, by name."""
        names = ("parity_db", "psnr_db", "reference_psnr_db", "ssim", "reference_ssim")
        columns = {name: [getattr(grade, name) for grade in self.clips] for name in names}
        return {"clips": len(self.clips), **{name: _mean(column) for name, column in columns.items()}}

    @property
    def quality(self) -> float | None:
        """Return the answers' PSNR against what happened over the reference's."""
        facts = self.facts()
        psnr, reference = facts["psnr_db"], facts["reference_psnr_db"]
        return round(psnr / reference, 5) if isinstance(psnr, float) and isinstance(reference, float) else None


class Exam:
    """Asks about clips in whatever order a scenario has, and keeps the answers."""

    def __init__(self, sheets: Sequence[Sheet], door: Door) -> None:
        self._sheets = sheets
        self._door = door
        self._answers: dict[int, Frames] = {}

    def __len__(self) -> int:
        """Count the clips."""
        return len(self._sheets)

    @property
    def prepare(self) -> Prepare:
        """Give what writes the question about the clip of an arrival's content's number."""
        return self._prepare

    def _prepare(self, arrival: Arrival) -> Send:
        sheet = self._sheets[arrival.content]
        content = Content(sheet.clip.frames[: self._door.sizes.context_frames], sheet.clip.states, sheet.seed)
        return self._door.prepare_kept(
            write_question(self._door.sizes, arrival.ask, content), _keeper(self._answers, arrival.content)
        )

    def grade(self, min_parity_db: float) -> Grades:
        """Compare what was answered."""
        return Grades(
            [grade(sheet, self._answers.get(place)) for place, sheet in enumerate(self._sheets)], min_parity_db
        )


async def examine(door: Door, ask: Ask, sheets: Sequence[Sheet]) -> Grades:
    """Ask about every clip, one after another, and grade the answers. Raises UnfitServer when they are wrong."""
    exam = Exam(sheets, door)
    for place in range(len(exam)):
        await play([Arrival(0.0, exam_ask(ask), place)], exam.prepare)
    grades = exam.grade(MIN_PARITY_DB)
    if grades.wrong:
        raise UnfitServer("; ".join(grades.wrong))
    return grades


def exam_ask(ask: Ask) -> Ask:
    """Ask in the same way past the cache, so that what is checked is computed."""
    return Ask(ask.members, ask.steps, ask.strategy, priority=ask.priority, cache="bypass")


def grade(sheet: Sheet, answer: Frames | None) -> Grade:
    """Grade one clip's answer, None for none."""
    truth = sheet.clip.frames[-len(sheet.answer) :]
    reference_psnr = float(psnr_db(sheet.answer, truth).mean())
    reference_ssim = _ssim(sheet.answer, truth)
    if answer is None or answer.shape != sheet.answer.shape:
        return Grade(None, None, reference_psnr, None, reference_ssim)
    parity = min(_EQUAL_DB, float(psnr_db(answer, sheet.answer).min()))
    return Grade(parity, float(psnr_db(answer, truth).mean()), reference_psnr, _ssim(answer, truth), reference_ssim)


def _keeper(answers: dict[int, Frames], place: int) -> Callable[[Frames], None]:
    return lambda frames: answers.__setitem__(place, frames)


def _ssim(frames: Frames, truth: Frames) -> float | None:
    return float(ssim(frames, truth).mean()) if min(truth.shape[1:3]) >= SSIM_WINDOW else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 4) if known else None
