"""Prometheus metrics, each labelled with the model's name, and with its registered version.

The names are those of NVIDIA NIM 1.x. NIM has none for the phases (queue, prefill, decode); these
have vLLM's names, without its prefix. What vLLM counts, too, is also there under vLLM's own name,
as NIM 2.x has it.
https://docs.nvidia.com/nim/large-language-models/latest/observability.html
https://docs.vllm.ai/en/stable/usage/metrics/
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pipeline.engines.base import Load

FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
RAIL_SECONDS = (0.0001, 0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
T = TypeVar("T")
TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


# vLLM's names, without its prefix.
AS_IN_VLLM = {
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "generation_tokens": "generation_tokens",
    "spec_decode_num_draft_tokens": "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens": "spec_decode_num_accepted_tokens",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "time_per_output_token_seconds": "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
    "request_prefill_time_seconds": "request_prefill_time_seconds",
    "request_decode_time_seconds": "request_decode_time_seconds",
    "request_finish": "request_success",
}


class _WithVllmsNames(Collector):
    """The metrics of a registry, and again those that vLLM has, by its names. These are made when
    they are asked for, so they cost a request nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        metrics = list(self._registry.collect())  # once: gauges are read here
        yield from metrics
        for metric in metrics:
            name = AS_IN_VLLM.get(metric.name)
            if name is None:
                continue
            renamed = Metric(f"vllm:{name}", metric.documentation, metric.type)
            for sample in metric.samples:
                rest = sample.name.removeprefix(metric.name)
                renamed.add_sample(f"vllm:{name}{rest}", sample.labels, sample.value)
            yield renamed


class Collectors:
    """The metrics of a server: of one version of a model, or of those that follow one another."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.shown = CollectorRegistry(auto_describe=False)
        self.shown.register(_WithVllmsNames(self.registry))
        self._made: dict[str, Any] = {}

    def get(self, kind: Callable[..., T], name: str, text: str, labels: Any, **given: Any) -> T:
        """The metric of this name, made when it is first asked for."""
        if name not in self._made:
            self._made[name] = kind(name, text, labels, registry=self.registry, **given)
        metric: T = self._made[name]
        return metric


class Metrics:
    """The metrics of one model.

    Args:
        version: of the registry, as a label; None: the model has none.
        collectors: of the server, where versions follow one another.
    """

    def __init__(
        self,
        model: str,
        load: Callable[[], Load],
        slots: int,
        *,
        version: str | None = None,
        collectors: Collectors | None = None,
    ) -> None:
        self._collectors = collectors = collectors or Collectors()
        labels = {"model_name": model} | ({"model_version": version} if version else {})
        names, self._values = list(labels), list(labels.values())
        self._gauges: list[Gauge] = []

        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            metric = collectors.get(Gauge, name, text, names)
            metric.labels(*self._values).set_function(read)
            self._gauges.append(metric)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = collectors.get(Histogram, name, text, names, buckets=buckets)
            return metric.labels(*self._values)

        def counter(name: str, text: str) -> Counter:
            return collectors.get(Counter, name, text, names).labels(*self._values)

        gauge("num_requests_running", "Sequences being generated", lambda: load().running)
        gauge("num_requests_waiting", "Sequences waiting for a slot", lambda: load().waiting)
        gauge("num_request_max", "Slots: sequences that can be generated at a time", lambda: slots)
        if load().cache_use is not None:
            gauge(
                "gpu_cache_usage_perc",
                "Used share of the KV cache, 0 to 1 (has NIM's name also on a CPU)",
                lambda: load().cache_use or 0,
            )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens processed")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.prefix_queries = counter(
            "prefix_cache_queries", "Prompt tokens for which earlier ones were looked up"
        )
        self.prefix_hits = counter(
            "prefix_cache_hits", "Prompt tokens that were not read again; by queries, the hit rate"
        )
        self.drafted = counter(
            "spec_decode_num_draft_tokens", "Tokens that speculative decoding drafted"
        )
        self.accepted = counter(
            "spec_decode_num_accepted_tokens",
            "Drafted tokens that the model chose; by drafted ones, the acceptance rate",
        )
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Tokens per prompt", TOKENS)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated per sequence", TOKENS
        )
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "Time from the request to the first token",
            FIRST_TOKEN_SECONDS,
        )
        self.per_token = histogram(
            "time_per_output_token_seconds",
            "Mean time between the tokens of a sequence",
            TOKEN_SECONDS,
        )
        self.latency = histogram(
            "e2e_request_latency_seconds",
            "Time from the request to the last token, or to the embeddings",
            REQUEST_SECONDS,
        )
        self.queue = histogram(
            "request_queue_time_seconds", "Time in the engine's queue", FIRST_TOKEN_SECONDS
        )
        self.prefill = histogram(
            "request_prefill_time_seconds",
            "Time from leaving the queue to the first token",
            FIRST_TOKEN_SECONDS,
        )
        self.decode = histogram(
            "request_decode_time_seconds",
            "Time from the first token to the last",
            REQUEST_SECONDS,
        )
        self.success = counter(
            "request_success", "Sequences that were completed, and requests for embeddings"
        )
        self._finished = collectors.get(
            Counter, "request_finish", "Sequences by finish reason", [*names, "finished_reason"]
        )
        self._failed = collectors.get(
            Counter,
            "request_failure",
            "Requests refused or failed, by HTTP status",
            [*names, "status"],
        )

        place = [*names, "configuration", "rail", "kind"]
        self._decisions = collectors.get(
            Counter,
            "guardrail_decisions",
            "Texts that a rail checked, by its decision",
            [*place, "decision"],
        )
        self._rail_seconds = collectors.get(
            Histogram,
            "guardrail_seconds",
            "Time of a rail for one text",
            place,
            buckets=RAIL_SECONDS,
        )
        self.guardrails_seconds = histogram(
            "guardrails_request_seconds",
            "Time of all rails of a request; beside e2e_request_latency_seconds",
            RAIL_SECONDS,
        )
        self.guardrails_first_text = histogram(
            "guardrails_first_text_seconds",
            "Time from the request to the first text that rails have passed, of streams",
            FIRST_TOKEN_SECONDS,
        )

        self._retrievals = collectors.get(
            Counter,
            "rag_requests",
            "Searches of documents for an answer, by what came of them",
            [*names, "collection", "outcome"],
        )
        self._retrieval_seconds = collectors.get(
            Histogram,
            "rag_seconds",
            "Time of a search of documents, by its part: embed, search, rerank",
            [*names, "collection", "part"],
            buckets=RAIL_SECONDS,
        )
        self._votes = collectors.get(
            Counter,
            "feedback_votes",
            "Votes between two models' answers, by outcome",
            [*names, "model", "other", "outcome"],
        )
        self._ratings = collectors.get(
            Counter, "feedback_ratings", "Ratings of answers", [*names, "model", "rating"]
        )

    def retrieved(self, collection: str, outcome: str, parts: Mapping[str, float]) -> None:
        """Count a search. outcome: found, nothing or failed. parts: seconds."""
        self._retrievals.labels(*self._values, collection, outcome).inc()
        for part, seconds in parts.items():
            self._retrieval_seconds.labels(*self._values, collection, part).observe(seconds)

    def voted(self, model: str, other: str, outcome: str) -> None:
        """Count a vote. outcome: of `model`: won or tie."""
        self._votes.labels(*self._values, model, other, outcome).inc()

    def rated(self, model: str, rating: str) -> None:
        self._ratings.labels(*self._values, model, rating).inc()

    def guardrail(
        self, configuration: str, rail: str, kind: str, decision: str, seconds: float
    ) -> None:
        """Count what a rail decided about a text."""
        place = (*self._values, configuration, rail, kind)
        self._decisions.labels(*place, decision).inc()
        self._rail_seconds.labels(*place).observe(seconds)

    def guarded(self, seconds: float, first_text: float | None) -> None:
        """Note the time of a request's rails, and until its first text."""
        self.guardrails_seconds.observe(seconds)
        if first_text is not None:
            self.guardrails_first_text.observe(first_text)

    def finished(self, reason: str) -> None:
        """Count a finished sequence.

        Args:
            reason: OpenAI's finish reason, `abort` (the client disconnected), or `error` (the
                sequence was refused, failed or timed out).
        """
        self._finished.labels(*self._values, reason).inc()
        if reason not in ("abort", "error"):
            self.success.inc()

    def failed(self, status: int) -> None:
        self._failed.labels(*self._values, str(status)).inc()

    def close(self) -> None:
        """Remove what can only be read while the model is loaded; counts remain."""
        for metric in self._gauges:
            metric.remove(*self._values)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._collectors.shown)
