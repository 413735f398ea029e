"""A canary from its beginning to its decision.

1. The baseline: what the stable server has shown. The sample size follows, and is printed.
2. The labelled questions, then the shadow, at both servers. No user is sent to the candidate yet.
3. The traffic: the candidate gets its share of users' requests.

At each look the first criterion whose interval is beyond its margin rolls the candidate back; when
all are within theirs, it is promoted. A candidate that is down is rolled back; so is one that is
undecided when the budget is spent. Whatever happens, the traffic goes to the stable version again.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.core.processes import terminated_as_interrupted
from pipeline.deployment.canary import questions as asking
from pipeline.deployment.canary.candidate import started
from pipeline.deployment.canary.counts import Arm
from pipeline.deployment.canary.criteria import (
    Finding,
    TrafficCriterion,
    all_fine,
    traffic_criteria,
    undecided,
    worse,
)
from pipeline.deployment.canary.traffic import Traffic, splitter
from pipeline.deployment.promotion import promote_version, require_promotable
from pipeline.deployment.pull import find_version
from pipeline.evaluation.resources import Resources
from pipeline.tracking.champion_changes import CHAMPION
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import Version
from pipeline.tracking.registry_writer import registry_at

FOLDER = "canary"  # below the artifacts: a folder for each canary
RESULT_TAG = "canary"  # of a version in the registry
CHANGE_SECONDS = 900.0  # until a stable server that follows champion has changed over
SAY_SECONDS = 60.0  # between two lines that say how far it is
Decision = Literal["promoted", "rolled back"]


@dataclass
class Record:
    """What the report shows.

    looks: the findings at each look at the traffic. plan: as it was printed.
    """

    title: str
    began: str
    share: float
    stable_version: str = ""
    candidate_version: str = ""
    decision: Decision | None = None
    why: str = ""
    plan: list[str] = field(default_factory=list)
    needed: int = 0
    seconds: float = 0.0
    metrics: list[Finding] = field(default_factory=list)
    looks: list[list[Finding]] = field(default_factory=list)
    questions: list[asking.Pair] = field(default_factory=list)
    shadow: list[asking.Pair] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All criteria as they stand."""
        return [*self.metrics, *(self.looks[-1] if self.looks else [])]

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title, "began": self.began, "seconds": round(self.seconds, 1),
            "stable_version": self.stable_version, "candidate_version": self.candidate_version,
            "share": self.share, "decision": self.decision, "why": self.why, "plan": self.plan,
            "needed_requests": self.needed,
            "findings": [finding.as_json() for finding in self.findings],
            "looks": [[finding.as_json() for finding in look] for look in self.looks],
            "questions": [pair.as_json() for pair in self.questions],
            "shadow": [pair.as_json() for pair in self.shadow],
        }  # fmt: skip


class _Ended(Exception):
    """The candidate is rolled back, and why."""


def run_canary(config: Config) -> tuple[Record, Path]:
    """Compare a candidate with what is served, and promote it or roll it back.

    Returns:
        What happened, and the folder of the report.

    Raises:
        ConfigError: the settings name no candidate, or no way to it. GateFailed: the version may
        not become champion. ArtifactError: there is no such version. PipelineError: the stable
        server, the proxy or the registry does not answer.
    """
    version = _version(config)
    traffic = splitter(config.canary)
    began = datetime.now(UTC)
    named = f"version {version.number} of {version.name}" if version else config.canary.candidate
    record = Record(f"Canary: {named}", f"{began:%Y-%m-%d %H:%M} UTC", config.canary.share)
    with ExitStack() as stack:
        stack.enter_context(terminated_as_interrupted())
        traffic.set_share(0.0)
        stable = Arm(config.canary.stable)
        _require_stable(stable, config)
        out = _new_folder(config.artifacts / FOLDER, f"{began:%Y%m%dT%H%M%SZ}")
        url = config.canary.candidate
        if url is None:
            assert version is not None
            place = stack.enter_context(started(config, version.number, out / "candidate.log"))
            traffic.point_at(place.host, place.port)
            url = place.url
        stack.enter_context(_given_back(traffic))
        canary = _Canary(config, traffic, stable, Arm(url), record, version)
        try:
            canary.compare()
            record.decision = "promoted"
            record.why = "every criterion is within its margin"
        except _Ended as ended:
            record.decision, record.why = "rolled back", str(ended)
        record.seconds = canary.seconds
        if record.decision == "promoted":
            canary.promote()
        traffic.set_share(0.0)
    if version:
        _note(config, version, record)
    return record, out


def _new_folder(place: Path, name: str) -> Path:
    """A folder for the report, which no other canary of the same second has."""
    place.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = place / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("there is always another number")


def _version(config: Config) -> Version | None:
    """The registered version that is tried; None: only an address is given."""
    wanted = config.register_.version
    if wanted is None:
        if config.canary.candidate is None:
            raise ConfigError(
                "give register.version, a number or an alias such as candidate, or the address of "
                "a server as canary.candidate"
            )
        return None
    version = find_version(wanted, config)
    if CHAMPION in version.aliases:
        raise ArtifactError(f"{version.title} of {version.name} serves already: nothing to compare")
    require_promotable(version, config.register_)
    return version


def _require_stable(stable: Arm, config: Config) -> None:
    """Refuse what could not end well."""
    stable.look()
    if not stable.ready:
        raise PipelineError(
            f"the stable server at canary.stable={stable.url} is not ready: start it, or give its "
            "address"
        )
    if config.canary.candidate is None and not stable.follows():
        raise ConfigError(
            f"the server at {stable.url} follows no alias of the registry, so it would not change "
            "over to a promoted version: start it with serve.follow=champion, or start the "
            "candidate's server yourself and give canary.candidate"
        )


@contextmanager
def _given_back(traffic: Traffic) -> Iterator[None]:
    """Send everything to the stable version again if the canary fails or is interrupted."""
    try:
        yield
    except BaseException:
        with suppress(PipelineError):
            traffic.set_share(0.0)
        raise


class _Canary:
    """The comparison, while it runs."""

    def __init__(
        self,
        config: Config,
        traffic: Traffic,
        stable: Arm,
        candidate: Arm,
        record: Record,
        version: Version | None,
    ) -> None:
        self._config, self._settings = config, config.canary
        self._traffic, self._stable, self._candidate = traffic, stable, candidate
        self._record, self._version = record, version
        self._begin = time.monotonic()
        self._down_since: float | None = None
        self._said, self._said_requests = 0.0, 0
        self._pool = asking.labelled(config)
        self._shadow = asking.shadow(config.canary.recordings)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def compare(self) -> None:
        """Return if the candidate is as good as the stable version.

        Raises:
            _Ended: it is not, or not within the budget.
        """
        self._baseline()
        self._candidate.look()
        if not self._candidate.ready:
            self._wait_for_candidate()
        self._record.stable_version = self._stable.version
        self._record.candidate_version = self._candidate.version
        if self._version and self._candidate.version not in ("", str(self._version.number)):
            raise ConfigError(
                f"the server at {self._candidate.url} serves version {self._candidate.version}, "
                f"and register.version={self._config.register_.version} is {self._version.title}"
            )
        probe = asking.metric_criteria(self._config, self._pool, 1.0)
        criteria, alpha = traffic_criteria(self._settings, self._stable.seen, len(probe))
        metrics = asking.metric_criteria(self._config, self._pool, alpha)
        self._say_plan(criteria, metrics)
        self._ask_questions(metrics)
        self._ask_shadow()
        self._watch(criteria)

    def _baseline(self) -> None:
        """Wait until the stable server has shown enough to plan with."""
        wanted = self._settings.baseline
        if self._stable.seen.requests < wanted:
            get_console().print(
                f"waiting for {wanted:,} requests of the stable server, from which the sample size "
                f"follows; it has {self._stable.seen.requests:,}"
            )
        while self._stable.seen.requests < wanted:
            if self.seconds > self._settings.seconds:
                raise _Ended(
                    f"the stable server had {self._stable.seen.requests:,} requests within "
                    f"canary.seconds={self._settings.seconds:g}, and {wanted:,} are needed to plan "
                    "(canary.baseline)"
                )
            time.sleep(self._settings.every)
            self._stable.look()
            self._say_progress(f"{self._stable.seen.requests:,} of {wanted:,} requests")

    def _wait_for_candidate(self) -> None:
        """A server that somebody else started may still be loading."""
        deadline = time.monotonic() + self._settings.down_seconds
        while not self._candidate.ready:
            if time.monotonic() > deadline:
                raise _Ended(f"the candidate at {self._candidate.url} does not become ready")
            time.sleep(min(self._settings.every, 1.0))
            self._candidate.look()

    def _say_plan(
        self, criteria: list[TrafficCriterion], metrics: list[asking.MetricCriterion]
    ) -> None:
        settings, record = self._settings, self._record
        record.needed = max(criterion.needed for criterion in criteria)
        lines = []
        if not self._pool:
            lines.append(
                "no labelled questions, so the gate's metrics are not compared (canary.questions)"
            )
        for metric in metrics:
            lines.append(
                f"{metric.title}: at most {metric.margin:.1%} worse; at most "
                f"{len(metric.places):,} questions"
            )
        for criterion in criteria:
            lines.append(
                f"{criterion.title}: {criterion.expected.share:.1%} now, at most "
                f"{criterion.margin:.1%} more; {criterion.needed:,} requests of the candidate"
            )
        most = self._most
        every = round(most / settings.share)
        lines.append(
            f"budget: {most:,} requests of the candidate, of about {every:,} in all, and "
            f"{settings.seconds:g} s"
        )
        if most < record.needed:
            lines.append(
                f"the statistics ask for {record.needed:,} requests: with canary.requests={most} "
                "the canary may end undecided, and then rolls back"
            )
        record.plan = lines
        console = get_console()
        console.print(f"sample size, with alpha {settings.alpha:g} at all looks together:")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)

    @property
    def _most(self) -> int:
        return self._settings.requests or self._record.needed

    def _ask_questions(self, criteria: list[asking.MetricCriterion]) -> None:
        """Ask the labelled questions until each criterion is decided."""
        resources = Resources(self._config.evaluate, self._config.artifacts, seed=self._config.seed)
        pairs: dict[int, asking.Pair] = {}
        place = 0
        while criteria and place < len(self._pool):
            end = place + asking.BATCH
            batch = self._pool[place:end]
            for offset, pair in enumerate(self._ask(batch)):
                pairs[place + offset] = pair
            place = min(end, len(self._pool))
            self._record.questions = list(pairs.values())
            found = [criterion.look(pairs, resources) for criterion in criteria]
            self._record.metrics = [finding for finding in found if finding is not None]
            self._roll_back_if_worse(self._record.metrics)
            if all_fine(self._record.metrics):
                return
            self._candidate.look()
            self._require_up()
            self._require_time()
        if open_ones := undecided(self._record.metrics):
            raise _Ended(f"undecided after all questions: {open_ones[0].text}")

    def _ask(self, batch: list[asking.Question]) -> list[asking.Pair]:
        return asking.ask(
            (self._stable.url, self._candidate.url), batch,
            most_tokens=self._config.evaluate.max_new_tokens, seed=self._config.seed,
        )  # fmt: skip

    def _ask_shadow(self) -> None:
        """Ask the candidate what users have asked who agreed to a record of it."""
        if not self._shadow:
            return
        self._record.shadow = asking.ask_candidate(
            self._candidate.url, self._shadow,
            most_tokens=self._config.evaluate.max_new_tokens, seed=self._config.seed,
        )  # fmt: skip
        pairs = self._record.shadow
        failed = [pair for pair in pairs if pair.candidate.failure]
        alike = sum(asking.same(p.stable.text, p.candidate.text) for p in pairs)
        get_console().print(
            f"shadow: {alike} of {len(pairs)} answers are alike, {len(failed)} failed"
        )
        if len(failed) == len(pairs):
            raise _Ended(f"the candidate fails in the shadow: {failed[0].candidate.failure}")

    def _watch(self, criteria: list[TrafficCriterion]) -> None:
        """Give the candidate its share, and look until something is decided."""
        self._look()
        for arm in (self._stable, self._candidate):
            arm.forget()
        lost = self._traffic.lost()
        self._traffic.set_share(self._settings.share)
        get_console().print(f"the candidate gets {self._settings.share:.0%} of the requests")
        while True:
            time.sleep(self._settings.every)
            self._look()
            now = self._traffic.lost()
            stable, candidate = self._stable.seen, self._candidate.seen
            stable.lost, candidate.lost = now[0] - lost[0], now[1] - lost[1]
            findings = [criterion.look(stable, candidate) for criterion in criteria]
            self._record.looks.append(findings)
            self._roll_back_if_worse(findings)
            self._require_up()
            if all_fine(findings):
                return
            self._say_progress(
                f"{candidate.requests:,} of at most {self._most:,} requests of the candidate; "
                f"{undecided(findings)[0].text}"
            )
            if candidate.requests >= self._most:
                raise _Ended(
                    f"undecided after {candidate.requests:,} requests, which is the budget: "
                    f"{undecided(findings)[0].text}"
                )
            self._require_time()

    def _say_progress(self, text: str) -> None:
        """Say now and then how far it is, and when nobody asks anything."""
        if self.seconds - self._said < SAY_SECONDS:
            return
        self._said = self.seconds
        requests = self._stable.seen.requests + self._candidate.seen.requests
        if requests == self._said_requests:
            text += (
                f"; no request has arrived for {SAY_SECONDS:g} s: check that users reach the "
                "servers, through the proxy if one splits the traffic"
            )
        self._said_requests = requests
        get_console().print(
            f"after {self.seconds:.0f} s: {text}", soft_wrap=True, markup=False, highlight=False
        )

    def _look(self) -> None:
        self._stable.look()
        self._candidate.look()
        if self._stable.version != self._record.stable_version:
            raise _Ended(
                f"the stable server changed to version {self._stable.version} meanwhile: start the "
                "canary again"
            )

    def _roll_back_if_worse(self, findings: list[Finding]) -> None:
        if found := worse(findings):
            raise _Ended("; ".join(finding.text for finding in found))

    def _require_up(self) -> None:
        """A server that is down gets no traffic, so no statistics would ever tell."""
        if self._candidate.restarts:
            raise _Ended("the candidate's server crashed: it began to count from zero")
        if self._candidate.ready:
            self._down_since = None
            return
        self._down_since = self._down_since or time.monotonic()
        if time.monotonic() - self._down_since >= self._settings.down_seconds:
            raise _Ended(
                f"the candidate's server is not ready, for more than "
                f"{self._settings.down_seconds:g} s"
            )

    def _require_time(self) -> None:
        if self.seconds > self._settings.seconds:
            open_ones = undecided(self._record.findings)
            what = f": {open_ones[0].text}" if open_ones else ""
            raise _Ended(f"undecided after canary.seconds={self._settings.seconds:g}{what}")

    def promote(self) -> None:
        """Make the version champion, and wait until a stable server that follows has changed over
        to it. Other servers are for the one to change who started the canary."""
        version = self._version
        if version:
            why = f"canary: {self._record.why}"
            if reason := self._config.register_.reason:
                why = f"{reason} ({why})"
            promote_version(self._config, version, why=why)
        if version and self._stable.follows():
            self._wait_for(
                lambda: self._stable.version == str(version.number),
                f"the stable server at {self._stable.url} has not changed over to "
                f"version {version.number} within {CHANGE_SECONDS:g} s, which is champion now: see "
                "its log",
            )

    def _wait_for(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + CHANGE_SECONDS
        self._stable.look()
        while not holds():
            if time.monotonic() > deadline:
                raise PipelineError(otherwise)
            time.sleep(min(self._settings.every, 1.0))
            self._stable.look()


def _note(config: Config, version: Version, record: Record) -> None:
    """Keep the decision with the version in the registry."""
    text = f"{record.decision} {record.began}: {record.why}"
    with registry_at(Destination.of(config.artifacts, config.tracking)) as registry:
        registry.set_version_tag(version.name, version.number, RESULT_TAG, text[:4000])
