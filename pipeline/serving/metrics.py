"""Prometheus metrics, each with the model's name.

The names are NVIDIA NIM's; those of the phases (queue, prefill, decode) are vLLM's, without its
prefix, since NIM has none for them.
https://docs.nvidia.com/nim/large-language-models/latest/observability.html
https://docs.vllm.ai/en/stable/usage/metrics/
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.engines.base import Load

FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, model: str, load: Callable[[], Load], slots: int) -> None:
        self.model = model
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            metric = Gauge(name, text, ["model_name"], registry=self._registry)
            metric.labels(model).set_function(read)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)
            return metric.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self._registry).labels(model)

        gauge("num_requests_running", "Answers in progress", lambda: load().running)
        gauge("num_requests_waiting", "Requests that wait for a slot", lambda: load().waiting)
        gauge("num_request_max", "Answers that can be in progress at once", lambda: slots)
        if load().cache_use is not None:
            gauge(
                "gpu_cache_usage_perc",
                "Share of the KV cache that holds tokens, 0 to 1 (NIM's name, on a CPU as well)",
                lambda: load().cache_use or 0,
            )
        self.prompt_tokens = counter("prompt_tokens", "Tokens read")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Of a request", TOKENS)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Of an answer", TOKENS
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From request to first token", FIRST_TOKEN_SECONDS
        )
        self.per_token = histogram(
            "time_per_output_token_seconds", "Mean between an answer's tokens", TOKEN_SECONDS
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From request to last token or vector", REQUEST_SECONDS
        )
        self.queue = histogram(
            "request_queue_time_seconds", "From request to the engine's start", FIRST_TOKEN_SECONDS
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "From the start to the first token", FIRST_TOKEN_SECONDS
        )
        self.decode = histogram(
            "request_decode_time_seconds", "From the first token to the last", REQUEST_SECONDS
        )
        self.success = counter(
            "request_success", "Answers that ended by themselves, and requests for embeddings"
        )
        self._finished = Counter(
            "request_finish",
            "Answers by how they ended",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._failed = Counter(
            "request_failure",
            "Requests refused or failed, by HTTP status",
            ["model_name", "status"],
            registry=self._registry,
        )

    def finished(self, reason: str) -> None:
        """Count an answer that ended by OpenAI's reason, by `abort` (the client left) or by `error`
        (it was refused, failed or took too long).
        """
        self._finished.labels(self.model, reason).inc()
        if reason not in ("abort", "error"):
            self.success.inc()

    def failed(self, status: int) -> None:
        self._failed.labels(self.model, str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
