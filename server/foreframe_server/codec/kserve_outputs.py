"""Answers to the tensor door's batches: where each output stands in an answer, and how the answer came about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from foreframe_engines import Contract
from foreframe_engines.nats import bits_map
from foreframe_server.calls import Answer
from foreframe_server.codec.kserve import Datatype
from foreframe_server.codec.kserve_models import TensorModel
from foreframe_server.codec.likelihoods import AskedLikelihood
from foreframe_server.codec.query import Asked
from foreframe_server.codec.scores import AskedScores
from foreframe_server.likelihoods import LikelihoodAnswer
from foreframe_server.schemas import Scalar, Warned
from foreframe_server.scores import ScoreAnswer

AskedT = TypeVar("AskedT")
AnsweredT = TypeVar("AnsweredT")


@dataclass(frozen=True, slots=True, eq=False)
class OutputReader(Generic[AskedT, AnsweredT]):
    """How a model's answers are read: `find` has a function for each output, `tell` says how an answer came about."""

    find: Mapping[str, Callable[[AnsweredT, Contract], np.ndarray]]
    tell: Callable[[AskedT, AnsweredT], Mapping[str, Scalar]]

    def stack(
        self, model: TensorModel, names: Sequence[str], answers: Sequence[AnsweredT], contract: Contract
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of these names, one row an answer."""
        datatypes = {spec.name: spec.datatype for spec in model.outputs}
        return {
            name: _stack([self.find[name](answer, contract) for answer in answers], datatypes[name]) for name in names
        }

    def tell_rows(self, asked: Sequence[AskedT], answers: Sequence[AnsweredT]) -> Mapping[str, Scalar]:
        """Say how the rows came about: what they share, or every row's in their order."""
        told = [self.tell(ask, answer) for ask, answer in zip(asked, answers, strict=True)]
        names = dict.fromkeys(name for row in told for name in row)
        return {name: _merge([row.get(name) for row in told]) for name in names}


def _stack(rows: Sequence[np.ndarray], datatype: Datatype) -> np.ndarray:
    """Put rows into one batch; those that are shorter than others end in zeros."""
    typed = [row.astype(datatype.dtype, copy=False) for row in rows]
    if len(typed) == 1:
        return typed[0][None]
    longest = max(len(row) for row in typed)
    padding = [(0, 0)] * (typed[0].ndim - 1)
    return np.stack([np.pad(row, [(0, longest - len(row)), *padding]) for row in typed])


def _merge(values: Sequence[Scalar]) -> Scalar:
    if all(value == values[0] for value in values):
        return values[0]
    return "; ".join("" if value is None else str(value) for value in values)


def _variance(answer: Answer, _: Contract) -> np.ndarray:
    """Return the members' variance, NaN where fewer than two of them tell of none."""
    prediction = answer.prediction
    return prediction.variance if prediction.num_members > 1 else np.full_like(prediction.variance, np.nan)


def _map(answer: LikelihoodAnswer, contract: Contract) -> np.ndarray:
    if contract.tokens is None:
        raise RuntimeError("a likelihood was answered for a model without tokens")
    return bits_map(answer.scores).reshape(-1, *contract.tokens.grid)


def _costs(answer: ScoreAnswer, _: Contract) -> np.ndarray:
    """Return each candidate's cost, NaN for one that was not scored."""
    return np.array([np.nan if each.score is None else each.score.cost.value for each in answer.outcomes])


def _ranks(answer: ScoreAnswer, _: Contract) -> np.ndarray:
    """Return each candidate's rank from 1, 0 for one that was not scored."""
    ranks = np.zeros(len(answer.outcomes), np.int32)
    ranks[list(answer.ranking)] = np.arange(1, len(answer.ranking) + 1)
    return ranks


def _tell_prediction(asked: Asked, answer: Answer) -> Mapping[str, Scalar]:
    sampling = answer.prediction.sampling
    return {
        "seed": sampling.seed,
        "steps": sampling.steps,
        "strategy": sampling.strategy.value,
        "cache": answer.cache.value,
        "determinism": answer.determinism,
        "degraded": answer.degraded is not None,
        **_tell_warnings(asked.warnings),
    }


def _tell_likelihood(asked: AskedLikelihood, _: LikelihoodAnswer) -> Mapping[str, Scalar]:
    return {"scenario": asked.query.scenario.value, **_tell_warnings(asked.warnings)}


def _tell_scores(asked: AskedScores, answer: ScoreAnswer) -> Mapping[str, Scalar]:
    sampling = asked.query.sampling
    stability = {} if answer.rank_stability is None else {"rank_stability": answer.rank_stability}
    return {
        "seed": sampling.seed,
        "steps": sampling.steps,
        "strategy": sampling.strategy.value,
        **stability,
        **_tell_warnings(asked.warnings),
    }


def _tell_warnings(warnings: Sequence[Warned]) -> Mapping[str, Scalar]:
    codes = dict.fromkeys(warning.code for warning in warnings)
    return {"warnings": ", ".join(codes)} if codes else {}


PREDICTION_OUTPUTS: OutputReader[Asked, Answer] = OutputReader(
    {
        "mean": lambda answer, _: answer.prediction.frames,
        "variance": _variance,
        "members": lambda answer, _: answer.prediction.members,
        "n_members": lambda answer, _: np.array([answer.prediction.num_members]),
        "deadline_met": lambda answer, _: np.array([answer.deadline_met]),
    },
    _tell_prediction,
)
LIKELIHOOD_OUTPUTS: OutputReader[AskedLikelihood, LikelihoodAnswer] = OutputReader(
    {
        "nats_total": lambda answer, _: np.array([answer.nats.nats_total]),
        "nats_per_token": lambda answer, _: np.array([answer.nats.nats_per_token]),
        "bits_per_frame": lambda answer, _: np.array(answer.nats.bits_per_grid),
        "map": _map,
        "deadline_met": lambda answer, _: np.array([answer.deadline_met]),
    },
    _tell_likelihood,
)
SCORE_OUTPUTS: OutputReader[AskedScores, ScoreAnswer] = OutputReader(
    {
        "costs": _costs,
        "ranks": _ranks,
        "best_index": lambda answer, _: np.array([*answer.ranking, -1][:1]),
        "n_members": lambda answer, _: np.array([answer.members]),
        "deadline_met": lambda answer, _: np.array([answer.deadline_met]),
    },
    _tell_scores,
)
