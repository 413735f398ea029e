"""What servers have counted: requests, failures, and latencies.

    arm = Arm("http://server-b:8000")
    arm.look()
    arm.seen.requests

Read from /metrics of each address that the server's name has, as those of a headless service. A
server that was restarted counts from zero again; what it counted before is kept.
"""

import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.client.addresses import headers
from pipeline.deployment.canary.sequential import Counts
from pipeline.serving.address import API_KEY

# Latencies, by their names in /metrics.
LATENCIES = {
    "e2e_request_latency_seconds": "the answer",
    "time_to_first_token_seconds": "the first token",
}
FAILURES = "request_failure_total"
# Of the statuses below 500, those that say that a server is too slow or too busy.
BUSY = frozenset({"408", "429"})
SECONDS = 5.0  # until a server that does not answer counts as down
_FAILED = "failed"
_REQUESTS = f"{next(iter(LATENCIES))}_count"
Key = tuple[str, str]  # a sample's name, and the bound of a bucket or ""


@dataclass
class Seen:
    """Counts of a time.

    lost: requests that ended without a response, which only a proxy can count.
    """

    counted: Counter[Key] = field(default_factory=Counter)
    lost: int = 0

    @property
    def requests(self) -> int:
        return int(self.counted[_REQUESTS, ""] + self.failed)

    @property
    def failed(self) -> int:
        return int(self.counted[_FAILED, ""]) + self.lost

    @property
    def failures(self) -> Counts:
        return Counts(self.failed, self.requests)

    def slower(self, latency: str, bound: float) -> Counts:
        """Requests with a latency above a bound, in seconds."""
        every = int(self.counted[f"{latency}_count", ""])
        return Counts(every - int(self.counted[f"{latency}_bucket", str(bound)]), every)

    def bounds(self, latency: str) -> list[float]:
        """The bounds of its buckets, in seconds."""
        name = f"{latency}_bucket"
        return sorted(float(le) for n, le in self.counted if n == name and le != "inf")

    def quantile_bound(self, latency: str, share: float) -> float | None:
        """The lowest bound that this share of the requests does not exceed; None: there is none."""
        for bound in self.bounds(latency):
            slower = self.slower(latency, bound)
            if slower.all and slower.share <= 1 - share:
                return bound
        return None


class Arm:
    """One side of the comparison: a server, or several behind one name.

    Attributes:
        seen: since the servers began, or since forget(). ready: whether each address said so at the
        last look. restarts: of servers, as far as their counts show it. version: of the registry;
        "" if it names none.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.seen = Seen()
        self.ready, self.restarts, self.version = False, 0, ""
        self._last: dict[str, Counter[Key]] = {}

    def look(self) -> None:
        """Read all counts. A server that does not answer is not ready; its counts stay."""
        import httpx

        addresses = self._addresses()
        self.ready = bool(addresses)
        with httpx.Client(timeout=SECONDS, trust_env=False) as client:
            for address in addresses:
                try:
                    now = read_counts(client.get(f"{address}/metrics").raise_for_status().text)
                    self.ready &= client.get(f"{address}/v1/health/ready").status_code == 200
                    said = client.get(f"{address}/v1/version", headers=headers(API_KEY))
                    self.version = str(said.raise_for_status().json().get("model_version", ""))
                except (httpx.HTTPError, ValueError):
                    self.ready = False
                    continue
                self._add(address, now)

    def follows(self) -> bool:
        """Whether the server follows an alias of the registry: then it takes webhooks."""
        import httpx

        from pipeline.serving.webhook import PATH

        try:
            answer = httpx.get(f"{self.url}{PATH}", timeout=SECONDS, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 405  # it wants a POST

    def forget(self) -> None:
        """Begin to count anew."""
        self.seen = Seen()

    def _add(self, address: str, now: Counter[Key]) -> None:
        before = self._last.get(address)
        self._last[address] = now
        if before is not None and now[_REQUESTS, ""] < before[_REQUESTS, ""]:
            self.restarts += 1
            before = None
        for key, value in now.items():
            self.seen.counted[key] += value - (before[key] if before else 0)

    def _addresses(self) -> list[str]:
        parts = urlsplit(self.url)
        assert parts.hostname
        if parts.scheme == "https":  # its certificate is for the name
            return [self.url]
        with suppress(OSError):
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
            hosts = dict.fromkeys(f"[{a[0]}]" if ":" in str(a[0]) else a[0] for *_, a in found)
            return [f"http://{host}:{parts.port or 80}" for host in hosts]
        return []


def read_counts(text: str) -> Counter[Key]:
    """The counts in the text of /metrics, summed over models and versions.

    Raises:
        ValueError: it is not in Prometheus' format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: Counter[Key] = Counter()
    wanted = {f"{name}_{kind}" for name in LATENCIES for kind in ("bucket", "count")}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in wanted:
                le = sample.labels.get("le", "")
                found[sample.name, str(float(le)) if le else ""] += int(sample.value)
            elif sample.name == FAILURES:
                status = sample.labels["status"]
                if status >= "500" or status in BUSY:
                    found[_FAILED, ""] += int(sample.value)
    return found
