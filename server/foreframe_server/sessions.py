"""A stateful rollout as a value: what was seen, what was predicted since, and what follows from a step or a frame.

Every change makes a new session that shares the old one's arrays, so forks cost nothing. It knows no device, no store
and no wire.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
from jaxtyping import Float32, UInt8

from foreframe_engines import EnsembleSpec, Prediction, Priority, Strategy
from foreframe_engines.types import Latents
from foreframe_server.calls import Answer, Timings
from foreframe_server.errors import Gone, InvalidRequest, Reason, StepOutOfOrder, UnknownModel
from foreframe_server.measures import psnr_db

MAX_SEED = 2**53 - 1


class UnknownSession(UnknownModel):
    """No session of the caller's has this id."""

    title = "No such session"


@dataclass(frozen=True, slots=True, eq=False)
class SessionSeed:
    """What a session starts from.

    frames: uint8 RGB 0..255, oldest first, at least the context's. states: float32, physical units, one row a frame.
    latents: of the last context frames, where they are at hand. seed: of its noise; None is drawn.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]
    latents: Latents | None = None
    seed: int | None = None
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepSampling:
    """How to draw; None is the model's default, and for the seed the session's own."""

    strategy: Strategy = Strategy.SAMPLE
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepAsk:
    """One step: the next state rows (float32, physical units) and how their frames are drawn.

    step_id: one more than the last committed one, or that one again; None is the next, whatever it is.
    """

    states: Float32[np.ndarray, "n d"]
    step_id: int | None = None
    sampling: StepSampling = field(default_factory=StepSampling)
    ensemble: EnsembleSpec = field(default_factory=EnsembleSpec)
    priority: Priority = Priority.CONTROLLER

    def is_like(self, other: "StepAsk") -> bool:
        """Whether both ask for the same frames."""
        return (self.sampling, self.ensemble) == (other.sampling, other.ensemble) and np.array_equal(
            self.states, other.states
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepAnswer:
    """What became of a step. `is_repeat`: it had been made before, and these are the bytes it gave then."""

    session_id: str
    step_id: int
    committed_step_id: int
    answer: Answer
    is_repeat: bool = False

    @property
    def prediction(self) -> Prediction:
        """The frames and what they rest on; `frame_indices` count from the step's first row, from 1."""
        return self.answer.prediction

    @property
    def frames(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The frames after the step's states, one a row."""
        return self.answer.prediction.frames

    @property
    def timings(self) -> Timings:
        """Milliseconds of each stage."""
        return self.answer.timings


class Piece(Protocol):
    """Something that sessions share and that holds memory."""

    @property
    def num_bytes(self) -> int:
        """How much memory it holds that no other piece does."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Frames in a row with their states, and the step after which they stood."""

    step_id: int
    frames: UInt8[np.ndarray, "t h w 3"]
    states: Float32[np.ndarray, "t d"]

    @property
    def num_bytes(self) -> int:
        """How much memory the arrays hold."""
        return self.frames.nbytes + self.states.nbytes

    def followed_by(self, later: "Stretch", count: int) -> "Stretch":
        """Return the last `count` frames of this stretch and the one after it."""
        frames = np.concatenate([self.frames, later.frames])[-count:]
        return Stretch(later.step_id, frames, np.concatenate([self.states, later.states])[-count:])


@dataclass(frozen=True, slots=True, eq=False)
class MadeStep:
    """The last step and its answer, so that the same one asked again gives the same bytes."""

    ask: StepAsk
    answer: Answer

    @property
    def num_bytes(self) -> int:
        """How much memory the arrays hold beside the frames, which their stretch holds."""
        prediction = self.answer.prediction
        return prediction.members.nbytes + prediction.variance.nbytes


@dataclass(frozen=True, slots=True)
class ShadowCheck:
    """How near predictions have been to what arrived: sums of PSNR in dB over `count` frames.

    baseline: of the frame seen before, taken as the prediction.
    """

    count: int = 0
    total_db: float = 0.0
    total_baseline_db: float = 0.0

    def plus(self, compared: "Sequence[Compared]") -> Self:
        """Return the check with more frames."""
        known = [each for each in compared if each.psnr_db is not None]
        return replace(
            self,
            count=self.count + len(known),
            total_db=self.total_db + sum(each.psnr_db or 0.0 for each in known),
            total_baseline_db=self.total_baseline_db + sum(each.baseline_db for each in known),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """One frame that arrived: PSNR in dB of its prediction, None where there was none, and of the frame before it."""

    psnr_db: float | None
    baseline_db: float


@dataclass(frozen=True, slots=True, eq=False)
class Pushed:
    """A session after frames arrived, and how they compare with what was predicted."""

    session: "Session"
    compared: tuple[Compared, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One stateful rollout after its last committed step.

    start: what a reset goes back to. seen: what arrived last, as many frames as a context has. steps: what was
    predicted since; the oldest may have been forgotten. ahead: the first predictions since `seen`, of which `num_met`
    frames have been met by what arrived. num_frames: frames since the start, `num_seen` of them up to `seen`.
    encoding: of the next context, where it is made or being made.
    """

    session_id: str
    tenant: str
    seed: int
    ttl_s: float
    start: Stretch
    seen: Stretch
    steps: tuple[Stretch, ...] = ()
    step_id: int = 0
    num_frames: int = 0
    num_seen: int = 0
    ahead: tuple[Stretch, ...] = ()
    num_met: int = 0
    last: MadeStep | None = None
    shadow: ShadowCheck = field(default_factory=ShadowCheck)
    encoding: Piece | None = None

    @property
    def context_frames(self) -> int:
        """How many frames a context has."""
        return len(self.start.frames)

    @property
    def context(self) -> Stretch:
        """What the next step starts from: the last frames that were seen or predicted."""
        return tail((self.seen, *self.steps), self.context_frames)

    @property
    def first_step_id(self) -> int:
        """From which step on `rolled_back` can go to every one; to where `seen` stood it always can."""
        if self.num_frames - self.num_seen == _num_frames(self.steps):
            return self.seen.step_id
        num_frames = 0
        for step in self.steps:
            num_frames += len(step.frames)
            if num_frames >= self.context_frames:
                return step.step_id
        return self.step_id

    @property
    def pieces(self) -> Iterator[Piece]:
        """Everything that holds memory; equal sessions and forks share pieces."""
        yield from {id(each): each for each in (self.start, self.seen, *self.ahead, *self.steps)}.values()
        if self.last is not None:
            yield self.last
        if self.encoding is not None:
            yield self.encoding

    @property
    def num_bytes(self) -> int:
        """How much memory the session holds, what it shares included."""
        return sum(piece.num_bytes for piece in self.pieces)

    def stepped(self, ask: StepAsk, answer: Answer, *, max_ahead: int) -> "Session":
        """Return the session after a step. max_ahead: predicted frames that wait to be compared."""
        made = Stretch(self.step_id + 1, answer.prediction.frames, ask.states)
        ahead = (*self.ahead, made) if self.steps else (made,)
        if self.steps and _num_frames(self.ahead) >= max_ahead:
            ahead = self.ahead
        return replace(
            self,
            steps=(*self.steps, made),
            step_id=made.step_id,
            num_frames=self.num_frames + len(made.frames),
            ahead=ahead,
            num_met=self.num_met if self.steps else 0,
            last=MadeStep(ask, answer),
            encoding=None,
        )

    def trimmed(self, history_bytes: int) -> "Session":
        """Forget the oldest predictions beyond so many bytes, but never what the next context needs."""
        steps = self.steps
        num_bytes, num_frames = sum(step.num_bytes for step in steps), _num_frames(steps)
        first = 0
        while num_bytes > history_bytes and num_frames - len(steps[first].frames) >= self.context_frames:
            num_bytes -= steps[first].num_bytes
            num_frames -= len(steps[first].frames)
            first += 1
        return replace(self, steps=steps[first:]) if first else self

    def pushed(self, arrived: Stretch) -> Pushed:
        """Take in frames that arrived after `seen`; what was predicted since makes way for them."""
        compared = tuple(self._compare(arrived.frames))
        arrived = replace(arrived, step_id=self.step_id)
        num_seen = self.num_seen + len(arrived.frames)
        session = replace(
            self,
            seen=self.seen.followed_by(arrived, self.context_frames),
            steps=(),
            num_frames=num_seen,
            num_seen=num_seen,
            num_met=self.num_met + len(arrived.frames),
            shadow=self.shadow.plus(compared),
            encoding=None,
        )
        return Pushed(session, compared)

    def rolled_back(self, step_id: int) -> "Session":
        """Return the session as it stood after a step.

        Raises StepOutOfOrder for one that was not made yet, Gone for one that is not kept any more.
        """
        if step_id > self.step_id:
            raise _not_made(step_id, self.step_id)
        if step_id < self.first_step_id and step_id != self.seen.step_id:
            raise _not_kept(step_id, self.first_step_id)
        steps = tuple(step for step in self.steps if step.step_id <= step_id)
        num_dropped = _num_frames(self.steps[len(steps) :])
        return replace(
            self,
            steps=steps,
            step_id=step_id,
            num_frames=self.num_frames - num_dropped if steps else self.num_seen,
            ahead=tuple(step for step in self.ahead if step.step_id <= step_id),
            last=self.last if step_id == self.step_id else None,
            encoding=self.encoding if step_id == self.step_id else None,
        )

    def restarted(self, start: Stretch, seed: int) -> "Session":
        """Return the session before its first step, from a start of its own or another."""
        is_known = self.start is start and not self.steps and self.seen is start
        return Session(
            self.session_id,
            self.tenant,
            seed,
            self.ttl_s,
            start,
            start,
            shadow=self.shadow,
            encoding=self.encoding if is_known else None,
        )

    def _compare(self, arrived: UInt8[np.ndarray, "n h w 3"]) -> Iterator[Compared]:
        predicted = [frame for stretch in self.ahead for frame in stretch.frames]
        expected = predicted[self.num_met : self.num_met + len(arrived)]
        before = np.concatenate([self.seen.frames[-1:], arrived[:-1]])
        baselines = psnr_db(before, arrived)
        for index, baseline in enumerate(baselines):
            has_frame = index < len(expected)
            psnr = float(psnr_db(expected[index][None], arrived[index][None])[0]) if has_frame else None
            yield Compared(psnr, float(baseline))


def tail(stretches: Sequence[Stretch], count: int) -> Stretch:
    """Return the last `count` frames of stretches in a row."""
    found: list[Stretch] = []
    num_frames = 0
    for stretch in reversed(stretches):
        found.insert(0, stretch)
        num_frames += len(stretch.frames)
        if num_frames >= count:
            break
    if len(found) == 1 and num_frames == count:
        return found[0]
    frames = np.concatenate([stretch.frames for stretch in found])[-count:]
    return Stretch(found[-1].step_id, frames, np.concatenate([stretch.states for stretch in found])[-count:])


def _num_frames(stretches: Sequence[Stretch]) -> int:
    return sum(len(stretch.frames) for stretch in stretches)


def check_turn(session: Session, ask: StepAsk) -> bool:
    """Say whether a step was made already; False for the next one. Raises StepOutOfOrder for any other."""
    if ask.step_id in (None, session.step_id + 1):
        return False
    if ask.step_id != session.step_id or session.last is None:
        reason = Reason("/step_id", "is neither the next step nor the last one", f"{session.step_id + 1}")
        raise StepOutOfOrder("The step is not the session's next one.", reasons=[reason])
    if not session.last.ask.is_like(ask):
        reason = Reason("/step_id", "was made with other states or another sampling", f"{session.step_id + 1}")
        raise StepOutOfOrder("The step was made already, and differently.", reasons=[reason])
    return True


def _not_made(step_id: int, committed: int) -> StepOutOfOrder:
    reason = Reason("/step_id", "was not made yet", f"at most {committed}", f"{step_id}")
    return StepOutOfOrder("The session has not made this step.", reasons=[reason])


def _not_kept(step_id: int, first: int) -> Gone:
    reason = Reason("/step_id", "is not kept any more", f"at least {first}", f"{step_id}")
    return Gone("The session does not go back that far.", reasons=[reason])


def first_stretch(seed: SessionSeed, context_frames: int) -> Stretch:
    """Return a copy of the context that a seed holds. Raises InvalidRequest when it is too short."""
    count = len(seed.frames)
    if count < context_frames:
        expected, received = f"at least {context_frames} frames", f"{count} frames"
        reason = Reason("/observation", "the observation has too few frames", expected, received)
        raise InvalidRequest("A session cannot start from so few frames.", reasons=[reason])
    return own_stretch(0, seed.frames[-context_frames:], seed.states[-context_frames:])


def own_stretch(step_id: int, frames: UInt8[np.ndarray, "t h w 3"], states: Float32[np.ndarray, "t d"]) -> Stretch:
    """Return a stretch with read-only copies, which keep no request's body alive."""
    stretch = Stretch(step_id, np.array(frames, np.uint8), np.array(states, np.float32))
    for array in (stretch.frames, stretch.states):
        array.flags.writeable = False
    return stretch
