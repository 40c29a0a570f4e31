"""What counting can predict of the next grid of ids: the models that a likelihood model has to beat. Pure numpy.

Counts come from training episodes, every smoothing constant from validation episodes. It knows ids and nothing of
frames. Every probability is a mixture of normalised ones, so it is normalised over the whole vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

Pseudocounts = Sequence[float]

_PSEUDOCOUNTS: Pseudocounts = tuple(10.0**power for power in range(-3, 7))
_UNIGRAM_PSEUDOCOUNTS: Pseudocounts = tuple(10.0**power for power in range(-4, 3))
_SHARES = np.linspace(0.005, 0.995, 199)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """How often each pair of a cause and an id was seen, kept sparse: most of a vocabulary is never seen."""

    vocabulary: int
    keys: Int64[np.ndarray, " k"]
    """cause * vocabulary + id, ascending."""
    counts: Int64[np.ndarray, " k"]

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[Int64[np.ndarray, "..."], Int64[np.ndarray, "..."]]], vocabulary: int
    ) -> "Counts":
        """Count pairs of (causes, ids), given in any number of portions."""
        found = [np.unique(causes * vocabulary + ids, return_counts=True) for causes, ids in pairs]
        keys, place = np.unique(np.concatenate([keys for keys, _ in found]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, place, np.concatenate([counts for _, counts in found]))
        return cls(vocabulary, keys, counts)

    def of_pair(self, causes: Int64[np.ndarray, "..."], ids: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Return how often each id followed its cause."""
        wanted = causes * self.vocabulary + ids
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.counts[place], 0)

    def of_cause(self, causes: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Return how often each cause was seen."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        first = np.searchsorted(self.keys, causes * self.vocabulary)
        after = np.searchsorted(self.keys, (causes + 1) * self.vocabulary)
        return ends[after] - ends[first]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Ids to predict, each with the id before it at its position. All of one shape `... s`."""

    previous: Int64[np.ndarray, "... s"]
    ids: Int64[np.ndarray, "... s"]

    @classmethod
    def of(cls, grids: Int64[np.ndarray, "t s"]) -> "Places":
        """Take every grid of an episode but the first."""
        return cls(grids[:-1], grids[1:])

    @property
    def positions(self) -> Int64[np.ndarray, "... s"]:
        """Where in its grid each id stands."""
        return np.broadcast_to(np.arange(self.ids.shape[-1]), self.ids.shape)


Probability = Callable[[Places], Float64[np.ndarray, "... s"]]


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """One counting model. chosen: its constants, by what they are called, and on what it rests."""

    name: str
    probability: Probability
    chosen: Mapping[str, float | str]

    def nats(self, places: Places) -> Float64[np.ndarray, "... s"]:
        """Return the cost of each id in nats."""
        return -np.log(self.probability(places))


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """What a baseline is fitted with: all training episodes, and the validation places that choose constants."""

    train: Sequence[Int64[np.ndarray, "t s"]]
    validation: Places
    vocabulary: int

    def backed_off(self, name: str, cause_of: Callable[[Places], np.ndarray], backs: Sequence[Baseline]) -> Baseline:
        """Count ids by cause, smoothed towards another baseline as by a Dirichlet prior of that mean."""
        pairs = ((cause_of(places), places.ids) for places in map(Places.of, self.train))
        table = Counts.of(pairs, self.vocabulary)
        return self.best([_smoothed(name, table, cause_of, back, each) for back in backs for each in _PSEUDOCOUNTS])

    def best(self, candidates: Sequence[Baseline]) -> Baseline:
        """Return the candidate under which the validation ids cost least."""
        return min(candidates, key=lambda candidate: float(candidate.nats(self.validation).mean()))


def fit_baselines(
    train: Sequence[Int64[np.ndarray, "t s"]], validation: Sequence[Int64[np.ndarray, "t s"]], vocabulary: int
) -> tuple[Baseline, ...]:
    """Fit uniform, unigram, per_position, copy_previous and bigram, from the weakest to the strongest in kind.

    train, validation: the ids of whole episodes; each must have at least two grids.
    """
    parts = [Places.of(grids) for grids in validation]
    held_out = Places(np.concatenate([each.previous for each in parts]), np.concatenate([each.ids for each in parts]))
    fit = _Fit(train, held_out, vocabulary)
    uniform = Baseline("uniform", lambda places: np.full(places.ids.shape, 1 / vocabulary), {})
    unigram = _fit_unigram(fit)
    per_position = fit.backed_off("per_position", lambda places: places.positions, [unigram])
    copy = fit.best([_fit_copy(held_out, rest) for rest in (unigram, per_position)])
    bigram = fit.backed_off("bigram", lambda places: places.previous, [unigram, per_position, copy])
    return uniform, unigram, per_position, copy, bigram


def _fit_unigram(fit: _Fit) -> Baseline:
    table = Counts.of(((np.zeros_like(grids), grids) for grids in fit.train), fit.vocabulary)
    total = int(table.counts.sum())

    def smoothed(pseudocount: float) -> Baseline:
        def probability(places: Places) -> Float64[np.ndarray, "... s"]:
            counts = table.of_pair(np.zeros_like(places.ids), places.ids)
            return (counts + pseudocount) / (total + pseudocount * fit.vocabulary)

        return Baseline("unigram", probability, {"pseudocount_per_id": pseudocount})

    return fit.best([smoothed(pseudocount) for pseudocount in _UNIGRAM_PSEUDOCOUNTS])


def _smoothed(
    name: str, table: Counts, cause_of: Callable[[Places], np.ndarray], back: Baseline, pseudocount: float
) -> Baseline:
    def probability(places: Places) -> Float64[np.ndarray, "... s"]:
        causes = cause_of(places)
        counts, totals = table.of_pair(causes, places.ids), table.of_cause(causes)
        return (counts + pseudocount * back.probability(places)) / (totals + pseudocount)

    return Baseline(name, probability, {"pseudocount": pseudocount, "backs_off_to": back.name})


def _fit_copy(validation: Places, rest: Baseline) -> Baseline:
    """Mix "as before" with another baseline by the share that the validation ids like best."""
    is_copy, other = validation.ids == validation.previous, rest.probability(validation)
    costs = [-np.log(share * is_copy + (1 - share) * other).mean() for share in _SHARES]
    share = float(_SHARES[int(np.argmin(costs))])

    def probability(places: Places) -> Float64[np.ndarray, "... s"]:
        return share * (places.ids == places.previous) + (1 - share) * rest.probability(places)

    return Baseline("copy_previous", probability, {"copy_share": round(share, 3), "rest": rest.name})
