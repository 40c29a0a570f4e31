"""How long one ideal server with a constant service time makes its callers wait. Knows no measurement.

A. K. Erlang, "The Theory of Probabilities and Telephone Conversations", 1909: the waiting time of M/D/1.
"""

import math
from collections.abc import Sequence

_HALVINGS = 60


def waiting_probability(seconds: float, service_s: float, load: float) -> float:
    """Return the share of callers of M/D/1 who wait at most so long. load: 0..1, below 1."""
    rate_hz = load / service_s
    terms = []
    for served in range(int(seconds / service_s) + 1):
        ahead = rate_hz * (served * service_s - seconds)
        terms.append(ahead**served / math.factorial(served) * math.exp(-ahead))
    return (1 - load) * math.fsum(terms)


def sojourn_quantile(share: float, service_s: float, load: float) -> float:
    """Return the seconds, service included, within which a share of the callers of M/D/1 is done. share: 0..1."""
    low_s, high_s = 0.0, service_s
    while waiting_probability(high_s, service_s, load) < share:
        low_s, high_s = high_s, 2 * high_s
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        if waiting_probability(middle_s, service_s, load) < share:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s + service_s


def ideal_sojourns(dues_s: Sequence[float], service_s: float) -> list[float]:
    """Return how long each of these very arrivals, in order, stays at one first-come server (Lindley's recursion)."""
    sojourns_s, free_s = [], -math.inf
    for due_s in dues_s:
        free_s = max(free_s, due_s) + service_s
        sojourns_s.append(free_s - due_s)
    return sojourns_s
