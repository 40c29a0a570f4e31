"""Candidates read by the token model side by side: one history, forked for each. It knows no deadline and no wire.

Each candidate's own likeliest ids are fed back; a goal picture's ids are scored at its frame without being fed back.
"""

from collections.abc import Sequence

import numpy as np

from foreframe_engines.reading import first_row, grid_states, next_row
from foreframe_engines.types import GridScore, TokenContext, TokenRow, TokenSpec
from foreframe_server.scores import Candidate, GoalImage, Likelihood, ScoreQuery, needs_tokens
from foreframe_server.scoring import Reading, grid_of_frame
from foreframe_server.token_reader import TokenJob


class TokenPlan:
    """Which reads a query's terms need of each candidate. Goals must have their ids before anything is read."""

    def __init__(self, query: ScoreQuery, tokens: TokenSpec) -> None:
        terms = [term for term in query.terms if needs_tokens(term)]
        self.tokens = tokens
        self.goals = [term for term in terms if isinstance(term, GoalImage)]
        self.has_own = any(isinstance(term, Likelihood) for term in terms)
        horizon = query.horizon // tokens.window_frames * tokens.window_grids
        last = max((grid_of_frame(goal.frame, tokens) for goal in self.goals), default=-1)
        self.num_grids = horizon if self.has_own else last + 1

    @property
    def num_reads(self) -> int:
        """How many grids are read for one candidate."""
        plain = sum(self.has_own or not self.due(grid) for grid in range(self.num_grids))
        return len(self.goals) + plain

    def due(self, grid: int) -> list[GoalImage]:
        """Return the goals that are scored at a grid."""
        return [goal for goal in self.goals if grid_of_frame(goal.frame, self.tokens) == grid]


class CandidateReader:
    """Reads candidates after one context, as a plan says."""

    def __init__(self, plan: TokenPlan, context: TokenContext, job: TokenJob) -> None:
        self._plan = plan
        self._context = context
        self._job = job

    async def read(self, candidates: Sequence[Candidate]) -> list[Reading]:
        """Read every candidate to its last grid, all of them grid by grid.

        Raises DeadlineExceeded, ClientLeft, NotReady or ModelFault.
        """
        states = [grid_states(candidate.rows, self._plan.tokens) for candidate in candidates]
        rows = [first_row(self._context, each[0]) for each in states]
        own: list[list[float]] = [[] for _ in candidates]
        goals: list[dict[GoalImage, float]] = [{} for _ in candidates]
        for grid in range(self._plan.num_grids):
            scores = await self._score_goals(grid, rows, goals)
            if self._plan.has_own or not scores:
                scores = await self._job.read(rows)
                _note(own, scores)
            if grid + 1 < self._plan.num_grids:
                rows = [
                    next_row(score, score.greedy, each[grid : grid + 2])
                    for score, each in zip(scores, states, strict=True)
                ]
        is_asked = self._plan.has_own
        return [
            Reading(float(np.mean(nats)) if is_asked else None, goal) for nats, goal in zip(own, goals, strict=True)
        ]

    async def _score_goals(
        self, grid: int, rows: Sequence[TokenRow], goals: Sequence[dict[GoalImage, float]]
    ) -> list[GridScore]:
        """Read the rows once for each goal that is due; any of the readings tells what comes next."""
        scores: list[GridScore] = []
        for goal in self._plan.due(grid):
            targets = [TokenRow(row.ids, row.states, row.history, goal.ids) for row in rows]
            scores = await self._job.read(targets)
            for nats, score in zip(goals, scores, strict=True):
                nats[goal] = _nats_per_token(score)
        return scores


def _note(own: Sequence[list[float]], scores: Sequence[GridScore]) -> None:
    for nats, score in zip(own, scores, strict=True):
        nats.append(_nats_per_token(score))


def _nats_per_token(score: GridScore) -> float:
    return -float(score.log_probability.mean(dtype=np.float64))
