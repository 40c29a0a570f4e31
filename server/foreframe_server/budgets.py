"""How much of the device each key may use before others go first. Pure: it knows no key's holder and no job."""

from dataclasses import dataclass

from foreframe_server.quotas import Charge, charge_nobody


@dataclass(slots=True)
class _Balance:
    seconds: float
    since_s: float


class Budgets:
    """A bucket of device seconds for each key, which refills at `rate` seconds a second up to `burst_s`.

    Without a rate nothing is ever spent. A key that has spent its budget is served last, not refused: an idle device
    serves everybody. It owes at most `burst_s`, so that what it ran on an idle device is not held against it for long.
    on_charge: hears of all that is booked, with and without a rate.
    """

    def __init__(self, rate: float | None = None, burst_s: float = 2.0, on_charge: Charge = charge_nobody) -> None:
        self._rate = rate
        self._burst_s = burst_s
        self._on_charge = on_charge
        self._now = 0.0
        self._balances: dict[str, _Balance] = {}

    def refill(self, now: float) -> None:
        """Let time pass; keys whose bucket is full again are forgotten."""
        self._now = now
        if self._rate is not None:
            self._balances = {
                key: balance for key, balance in self._balances.items() if self._left_s(balance) < self._burst_s
            }

    def charge(self, key: str, seconds: float) -> None:
        """Book what was run for a key."""
        self._on_charge(key, seconds)
        if self._rate is None:
            return
        balance = self._balances.get(key)
        left_s = self._burst_s if balance is None else self._left_s(balance)
        self._balances[key] = _Balance(max(-self._burst_s, left_s - seconds), self._now)

    def is_spent(self, key: str) -> bool:
        """Whether a key has nothing left."""
        balance = self._balances.get(key)
        return balance is not None and self._left_s(balance) <= 0

    def _left_s(self, balance: _Balance) -> float:
        rate = self._rate or 0.0
        return min(self._burst_s, balance.seconds + rate * (self._now - balance.since_s))
