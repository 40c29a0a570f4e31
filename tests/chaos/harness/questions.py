"""Questions for an oracle: their bodies, and the digest of the only right answer. Sends nothing."""

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from foreframe_engines.nats import count_nats
from foreframe_engines.reading import grid_states, read_history, teacher_forced
from foreframe_engines.sampling import sample
from foreframe_engines.testing_oracle import CHANNELS, Knob, OracleEngine, OracleLikelihood, oracle_contract
from foreframe_engines.types import EnsembleSpec, NoisePlan, Query, Sampling, Strategy
from foreframe_server.codec.documents import Document, read_document, write_document
from foreframe_server.codec.media import Media

CALM = OracleEngine(is_calm=True)
READER = OracleLikelihood()
CONTRACT = oracle_contract()
SEED = 20_251_007
_MAX_VALUES = 1_000_000
_STREAM = 2**20


class Kind(StrEnum):
    """Which route is asked."""

    PREDICTION = "predictions"
    LIKELIHOOD = "likelihoods"


@dataclass(frozen=True)
class Question:
    """What is asked; equal `content` and terms make equal questions. `stream` tells the contents of runs apart.

    scenes: so many different observations; the seed still differs with every content.
    """

    content: int
    kind: Kind = Kind.PREDICTION
    members: int = 1
    steps: int = 2
    knob: Knob = Knob.NONE
    amount: float = 0.0
    deadline_ms: int | None = None
    on_deadline: str = "fail"
    cache: str = "use"
    stream: int = 0
    scenes: int | None = None
    overrides: Document = field(default_factory=dict, compare=False)

    @property
    def path(self) -> str:
        return f"/v1/{self.kind}"

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        scene = self.content if self.scenes is None else self.content % self.scenes
        rng = np.random.default_rng((SEED, self.stream, scene))
        frames = rng.integers(0, 256, (CONTRACT.num_frames, 8, 8, 3), dtype=np.uint8)
        states = rng.standard_normal((CONTRACT.num_frames, len(CHANNELS)), dtype=np.float32)
        states[-1, -2:] = self.knob, self.amount
        return frames, states

    @cached_property
    def body(self) -> bytes:
        """The request, as MessagePack."""
        terms = self._prediction() if self.kind is Kind.PREDICTION else self._likelihood()
        deadline = {} if self.deadline_ms is None else {"deadline_ms": self.deadline_ms}
        return write_document(
            {"observation": self._observation(), **terms, **deadline, **self.overrides}, Media.MSGPACK
        )

    def _observation(self) -> Document:
        frames, states = self._arrays
        context = CONTRACT.context_frames
        return {"cameras": {"head": _clip(frames[:context])}, "state": {"values": states[:context]}}

    def _prediction(self) -> Document:
        return {
            "future": {"kind": "state", "values": self._arrays[1][CONTRACT.context_frames :]},
            "ensemble": {"size": self.members},
            "sampling": {"seed": self.content, "steps": self.steps},
            "return": {"encoding": "raw", "members": True},
            "on_deadline": self.on_deadline,
            "cache": self.cache,
        }

    def _likelihood(self) -> Document:
        frames, states = self._arrays
        context = CONTRACT.context_frames
        return {"target": {**_clip(frames[context:]), "state": {"values": states[context:]}}}

    def check(self, reply: bytes) -> str | None:
        """Say what is wrong with an answer; None when it is right."""
        document = read_document(reply, Media.MSGPACK, max_values=_MAX_VALUES)
        if self.kind is Kind.LIKELIHOOD:
            return None if document["nats_total"] == self.expected_nats() else "nats"
        ensemble = document["ensemble"]
        if not (1 <= ensemble["members"] <= self.members):
            return "members"
        if self.on_deadline == "fail" and (ensemble["members"], ensemble["steps"]) != (self.members, self.steps):
            return "cut"
        got = digest(document["members"], np.stack([frame["image"] for frame in document["frames"]]))
        return None if got == self.expected(ensemble["members"], ensemble["steps"]) else "bytes"

    def expected(self, members: int, steps: int) -> str:
        """Return the digest of the right answer of so many members and steps."""
        frames, states = self._arrays
        query = Query(
            CONTRACT.model,
            frames[: CONTRACT.context_frames],
            states,
            tuple(range(1, CONTRACT.horizon + 1)),
            Sampling(Strategy.SAMPLE, steps, self.content),
            EnsembleSpec(members, noise=NoisePlan.ANTITHETIC),
        )
        prediction = sample(CALM, query)
        return digest(prediction.members, prediction.frames)

    def expected_nats(self) -> float:
        """Return what a likelihood's target costs."""
        (frames, states), context = self._arrays, CONTRACT.context_frames
        grids = grid_states(states, READER.tokens)
        ids = READER.tokenize(frames)
        read = read_history(READER, ids[:context], grids[:context])
        scores = teacher_forced(READER, read, ids[context:], grids[context:])
        return count_nats(scores, num_pixels=1).nats_total


def digest(members: np.ndarray, frames: np.ndarray) -> str:
    """Hash an answer's draws and what they were reduced to."""
    return hashlib.sha256(np.asarray(members).tobytes() + np.asarray(frames).tobytes()).hexdigest()


def _clip(frames: np.ndarray) -> Document:
    return {"encoding": "raw_rgb8", "data": frames, "width": 8, "height": 8}


def mixed(count: int, *, seed: int, stream: int = 0, **terms: object) -> list[Question]:
    """Draw questions of many sizes, a tenth of them likelihoods and a tenth a repetition of one before."""
    rng = np.random.default_rng(seed)
    questions: list[Question] = []
    for content in range(count):
        question = Question(content, stream=stream, members=int(rng.integers(1, 4)), steps=int(rng.integers(1, 4)))
        question = replace(question, **terms)
        lot = rng.random()
        if lot < 0.1:
            question = replace(question, kind=Kind.LIKELIHOOD)
        elif lot < 0.2 and questions:
            question = questions[int(rng.integers(len(questions)))]
        questions.append(question)
    return questions
