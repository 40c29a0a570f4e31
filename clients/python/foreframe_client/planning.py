"""Planning by sampling: propose plans, let a server score them, propose again near the best ones.

Lower cost is better. A scorer is all that a planner calls: usually `client.score` with the observation, the objectives
and a fixed seed filled in by `functools.partial`. What is best is the server's ranking: feasible plans by their cost,
then the others by what they exceed. Cross-entropy method: Rubinstein and Kroese, 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List, Optional, Protocol, Tuple

import numpy as np

from foreframe_client._errors import ForeframeError
from foreframe_client._short import Short
from foreframe_client._types import CandidateScore, Scores

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64

    Propose = Callable[[np.random.Generator, int], Float32[np.ndarray, "k H d"]]
    Decode = Callable[[Float64[np.ndarray, "k a"]], Float32[np.ndarray, "k H d"]]


class NothingScored(ForeframeError):
    """Not one candidate of any round was scored."""


class Scorer(Protocol):
    """Says what each candidate costs: `client.score` with everything but the candidates filled in."""

    def __call__(self, *, candidates: Float32[np.ndarray, "k H d"]) -> Scores:
        """Score k plans of H state rows."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Short):
    """Where actions are drawn from: independent normal numbers."""

    mean: Float64[np.ndarray, " a"]
    std: Float64[np.ndarray, " a"]

    def draw(self, rng: np.random.Generator, count: int) -> Float64[np.ndarray, "k a"]:
        """Draw actions."""
        return rng.normal(self.mean, self.std, (count, len(self.mean)))


@dataclass(frozen=True, eq=False, repr=False)
class Round(Short):
    """What was proposed and what it cost. actions: None where states were proposed themselves."""

    candidates: Float32[np.ndarray, "k H d"]
    scores: Scores
    actions: Optional[Float64[np.ndarray, "k a"]] = None

    @property
    def best(self) -> Optional[CandidateScore]:
        """The round's best candidate, None when none was scored."""
        index = self.scores.best_index
        return None if index is None else self.scores.candidates[index]


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Short):
    """The best candidate of all rounds, and how it was found.

    action: what it was decoded from, None where states were proposed themselves. proposal: what the last round leaves
    to start the next plan from.
    """

    states: Float32[np.ndarray, "H d"]
    action: Optional[Float64[np.ndarray, " a"]]
    score: CandidateScore
    rounds: Tuple[Round, ...]
    proposal: Optional[Gaussian] = None

    @property
    def cost(self) -> float:
        """The best candidate's cost."""
        return _cost(self.score)

    @property
    def best_costs(self) -> Float64[np.ndarray, " r"]:
        """Each round's best cost, NaN for a round of which nothing was scored."""
        return np.array([np.nan if each.best is None else _cost(each.best) for each in self.rounds])


def random_shooting(
    score: Scorer, propose: Propose, *, num_candidates: int = 32, rounds: int = 1, seed: int = 0
) -> Plan:
    """Draw plans from `propose(rng, count)` and return the best. Raises NothingScored and what the scorer raises."""
    rng = np.random.default_rng(seed)
    done: List[Round] = []
    for _ in range(rounds):
        candidates = propose(rng, num_candidates)
        done.append(Round(candidates, score(candidates=candidates)))
    return _plan_of(done, None)


@dataclass(frozen=True, eq=False)
class CrossEntropyPlanner:
    """Draws actions from a Gaussian, decodes them to state rows, and refits it to the elites, round by round.

    decode: actions `k a` to plans `k H d`. The best action found so far is proposed again in every later round, so
    that under a fixed seed the best cost never rises. min_std: the Gaussian gets no narrower.
    """

    decode: Decode
    proposal: Gaussian
    num_candidates: int = 32
    num_elites: int = 6
    rounds: int = 3
    min_std: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 <= self.num_elites <= self.num_candidates or self.rounds < 1:
            raise ValueError("a planner needs a round, and 1 to num_candidates elites")

    def plan(self, score: Scorer, *, start: Optional[Gaussian] = None, seed: int = 0) -> Plan:
        """Search for the cheapest plan; `start` replaces the proposal of the first round.

        Equal seeds propose the same. Raises NothingScored and what the scorer raises.
        """
        rng = np.random.default_rng(seed)
        proposal, done = start or self.proposal, []  # type: Gaussian, List[Round]
        for _ in range(self.rounds):
            actions = proposal.draw(rng, self.num_candidates)
            if any(each.best for each in done):
                actions[0] = _plan_of(done, None).action
            candidates = self.decode(actions)
            done.append(Round(candidates, score(candidates=candidates), actions))
            proposal = self._refit(proposal, done[-1], actions)
        return _plan_of(done, proposal)

    def _refit(self, proposal: Gaussian, last: Round, actions: Float64[np.ndarray, "k a"]) -> Gaussian:
        elites = actions[_ranking(last.scores)[: self.num_elites]]
        if not len(elites):
            return proposal
        return Gaussian(elites.mean(axis=0), np.maximum(elites.std(axis=0), self.min_std))


def _ranking(scores: Scores) -> Int64[np.ndarray, " k"]:
    """Order what was scored, best first."""
    ranked = [(entry.rank, entry.index) for entry in scores.candidates if entry.rank is not None]
    return np.array([index for _, index in sorted(ranked)], np.int64)


def _plan_of(rounds: List[Round], proposal: Optional[Gaussian]) -> Plan:
    found = [(each, each.best) for each in rounds if each.best is not None]
    if not found:
        raise NothingScored("no candidate was scored: all are invalid, failed or out of time")
    best_round, best = min(found, key=lambda pair: _order(pair[1]))
    actions = best_round.actions
    return Plan(
        states=best_round.candidates[best.index],
        action=None if actions is None else actions[best.index],
        score=best,
        rounds=tuple(rounds),
        proposal=proposal,
    )


def _order(entry: CandidateScore) -> Tuple[float, float]:
    """Rank as the server does: what is exceeded first, then the cost."""
    return sum(max(bound.excess, 0.0) for bound in entry.constraints), _cost(entry)


def _cost(entry: CandidateScore) -> float:
    return np.inf if entry.cost is None else entry.cost
