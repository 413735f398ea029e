"""What a candidate is compared by, and what follows from the comparison so far.

A criterion is a difference, candidate less stable version, in the direction that is worse, and the
margin that it may have. Its interval holds at every look (sequential.py), so that the first look
decides whose interval is on one side of the margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.config.outside.canary import CanaryConfig
from pipeline.deployment.canary.counts import LATENCIES, Seen
from pipeline.deployment.canary.sequential import Counts, difference, requests_needed

State = Literal["worse", "fine", "open"]
QUANTILES = (0.5, 0.95)  # of the stable version's latency: their bounds are compared


@dataclass(frozen=True)
class Finding:
    """A criterion as it stands.

    name: such as errors. title: in words. stable, candidate: the values. low, high: bounds of the
    difference, in the direction that is worse. margin: what it may be. count: of the candidate's
    requests, or of questions.
    """

    name: str
    title: str
    stable: float
    candidate: float
    value: float
    low: float
    high: float
    margin: float
    count: int

    @property
    def state(self) -> State:
        if self.low > self.margin:
            return "worse"
        return "fine" if self.high <= self.margin else "open"

    @property
    def text(self) -> str:
        """As in "failed requests: 12.0% beside 1.0%, a difference of 7.1% to 16.0%; at most 1.0% is
        allowed"."""
        return (
            f"{self.title}: {self.candidate:.1%} beside {self.stable:.1%}, a difference of "
            f"{self.low:+.1%} to {self.high:+.1%} after {self.count:,}; at most {self.margin:+.1%} "
            "is allowed"
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


@dataclass(frozen=True)
class TrafficCriterion:
    """A share of requests. latency, bound: of the slow ones, in seconds; "": of those that failed.

    needed: requests of the candidate that the statistics ask for.
    """

    name: str
    title: str
    margin: float
    alpha: float
    expected: Counts
    needed: int
    latency: str = ""
    bound: float = 0.0

    def look(self, stable: Seen, candidate: Seen) -> Finding:
        ours, theirs = self._counts(candidate), self._counts(stable)
        found = difference(ours, theirs, self.alpha)
        return Finding(self.name, self.title, theirs.share, ours.share, found.value, found.low,
                       found.high, self.margin, ours.all)  # fmt: skip

    def _counts(self, seen: Seen) -> Counts:
        return seen.slower(self.latency, self.bound) if self.latency else seen.failures


def traffic_criteria(
    settings: CanaryConfig, baseline: Seen, metrics: int
) -> tuple[list[TrafficCriterion], float]:
    """The criteria of the traffic, and the alpha of each criterion.

    baseline: what the stable server has shown. metrics: how many criteria there are beside these.
    """
    shapes: list[tuple[str, str, float, Counts, str, float]] = [
        ("errors", "failed requests", settings.error_margin, baseline.failures, "", 0.0)
    ]
    for latency, what in LATENCIES.items():
        found = (baseline.quantile_bound(latency, share) for share in QUANTILES)
        for bound in dict.fromkeys(b for b in found if b is not None):
            title = f"requests that wait longer than {bound:g} s for {what}"
            shapes.append((f"{latency}>{bound:g}", title, settings.slow_margin,
                           baseline.slower(latency, bound), latency, bound))  # fmt: skip
    alpha = settings.alpha / (len(shapes) + metrics)
    return [
        TrafficCriterion(name, title, margin, alpha, expected,
                         requests_needed(expected, settings.share, margin, alpha),
                         latency, bound)
        for name, title, margin, expected, latency, bound in shapes
    ], alpha  # fmt: skip


def worse(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "worse"]


def all_fine(findings: Sequence[Finding]) -> bool:
    return all(finding.state == "fine" for finding in findings)


def undecided(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "open"]


def by_name(findings: Sequence[Finding]) -> Mapping[str, Finding]:
    return {finding.name: finding for finding in findings}
