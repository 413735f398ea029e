"""Confidence sequences: intervals that hold at every look at once, however often one looks.

    low, high = share(failed, requests, alpha)
    low, high = difference(candidate, stable, alpha)

The chance that the true value is ever outside is at most alpha, so a decision may be made at the
first look whose interval allows one. Knows numbers only.

- A share: the mixture of Robbins (1970, "Statistical methods related to the law of the iterated
  logarithm") with a beta distribution, as in Howard, Ramdas, McAuliffe and Sekhon (2021,
  "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49). It
  holds at any number of requests. Johari, Koomen, Pekelis and Walsh (2022, "Always valid
  inference", Operations Research 70) show why a plain test that is looked at often errs.
- The mean over a pool of questions that are asked in random order, each once: the empirical
  Bernstein bound of Waudby-Smith and Ramdas (2020, "Confidence sequences for sampling without
  replacement", NeurIPS). When all are asked it is a point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_PRIOR = 0.5  # both parameters of the beta distribution
_MOST_BET = 0.5
_STEPS = 40  # of bisection
MOST_REQUESTS = 10**8


@dataclass(frozen=True)
class Counts:
    """So many of all requests are of some kind, as failed."""

    some: int = 0
    all: int = 0

    @property
    def share(self) -> float:
        return self.some / self.all if self.all else 0.0


@dataclass(frozen=True)
class Interval:
    """A value with the bounds that hold at every look."""

    value: float
    low: float
    high: float


def share(counts: Counts, alpha: float) -> Interval:
    """The share of requests that are of a kind."""
    some, rest, here = counts.some, counts.all - counts.some, counts.share
    if not counts.all:
        return Interval(0.0, 0.0, 1.0)
    mixture = _log_beta(_PRIOR + some, _PRIOR + rest) - _log_beta(_PRIOR, _PRIOR)
    limit = mixture + math.log(alpha)  # shares of a lower log-likelihood are excluded

    def edge(outside: float) -> float:
        inside = here
        for _ in range(_STEPS):
            middle = (outside + inside) / 2
            if _log_power(middle, some) + _log_power(1 - middle, rest) < limit:
                outside = middle
            else:
                inside = middle
        return outside

    return Interval(here, edge(0.0) if some else 0.0, edge(1.0) if rest else 1.0)


def difference(ours: Counts, theirs: Counts, alpha: float) -> Interval:
    """Our share less theirs. Each side's interval has half of alpha."""
    a, b = share(ours, alpha / 2), share(theirs, alpha / 2)
    return Interval(a.value - b.value, a.low - b.high, a.high - b.low)


def pool_mean(values: Sequence[float], pool: int, alpha: float) -> Interval:
    """The mean over a pool, of values from -1 to 1 of those that were drawn, in their order.

    pool: how many there are in all.
    """
    drawn = len(values)
    if not drawn:
        return Interval(0.0, -1.0, 1.0)
    scaled = [(1 + value) / 2 for value in values]
    log_term = math.log(2 / alpha)
    total = weights = pull = spent = 0.0  # pull: of the weighted values; spent: of the variance
    mean, squares = 0.5, 0.25
    for place, x in enumerate(scaled, 1):
        left = pool - place + 1
        variance = squares / place
        bet = min(_MOST_BET, math.sqrt(2 * log_term / (variance * place * math.log(1 + place))))
        pull += bet * (x + total / left)
        weights += bet * pool / left
        spent += 4 * (x - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        total += x
        mean = (0.5 + total) / (place + 1)
        squares += (x - mean) ** 2
    center, half = pull / weights, (log_term + spent) / weights
    # Whatever the rest is, the mean is between these.
    rest = pool - drawn
    low, high = max(center - half, total / pool), min(center + half, (total + rest) / pool)
    value = total / drawn
    if low > high:  # a chance of alpha
        low = high = value
    return Interval(2 * value - 1, 2 * low - 1, 2 * high - 1)


def requests_needed(
    expected: Counts, share_of_traffic: float, margin: float, alpha: float, power: float = 0.95
) -> int:
    """Requests of the candidate after which a difference above the margin is ruled out.

    The candidate is as good as the stable version, and as unlucky as one in 1 / (1 - power) is.

    expected: what the stable version has shown. share_of_traffic: that the candidate gets.
    """
    from statistics import NormalDist

    p = (expected.some + _PRIOR) / (expected.all + 2 * _PRIOR)
    slack = NormalDist().inv_cdf(power)

    def decides(requests: int) -> bool:
        others = max(1, round(requests * (1 - share_of_traffic) / share_of_traffic))
        spread = math.sqrt(p * (1 - p) * (1 / requests + 1 / others))
        unlucky = min(requests, math.ceil(requests * (p + slack * spread)))
        found = difference(Counts(unlucky, requests), Counts(round(p * others), others), alpha)
        return found.high <= margin

    least, most = 1, 16
    while not decides(most):
        least, most = most, most * 2
        if most > MOST_REQUESTS:
            return most
    while most - least > max(1, most // 200):
        middle = (least + most) // 2
        least, most = (least, middle) if decides(middle) else (middle, most)
    return most


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_power(p: float, times: int) -> float:
    if not times:
        return 0.0
    return times * math.log(p) if p > 0 else -math.inf
