"""Switches for work that a rollout model can be spared without changing what it says. Knows no model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Savings:
    """What is spared; every switch leaves the answer as it is, up to rounding.

    folds_prompt: cross-attention to a prompt that never changes reads its distinct rows from constants.
    keeps_time_tables: the modulation of every time of a schedule is computed once, before the first step.
    skips_equal_branch: guidance runs one branch where the other would say the same.
    drops_context_queries: the last block and the head answer for the future frames alone.
    """

    folds_prompt: bool = True
    keeps_time_tables: bool = True
    skips_equal_branch: bool = True
    drops_context_queries: bool = True


ALL_SAVINGS = Savings()
NO_SAVINGS = Savings(folds_prompt=False, keeps_time_tables=False, skips_equal_branch=False, drops_context_queries=False)
