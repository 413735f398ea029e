"""Prometheus metrics, named as NVIDIA NIM's, each with the model's name."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.serving.engine import Load

FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


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
        self.prompt_tokens = counter("prompt_tokens", "Tokens read")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From request to first token", FIRST_TOKEN_SECONDS
        )
        self.per_token = histogram(
            "time_per_output_token_seconds", "Mean between an answer's tokens", TOKEN_SECONDS
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From request to last token", REQUEST_SECONDS
        )
        finished = Counter(
            "request_finish",
            "Answers by how they ended",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        failed = Counter(
            "request_failure",
            "Requests refused or failed, by HTTP status",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._finished = lambda reason: finished.labels(model, reason).inc()
        self._failed = lambda status: failed.labels(model, str(status)).inc()

    def finished(self, reason: str) -> None:
        """Count an answer that ended by `stop`, `length` or `abort` (the client left)."""
        self._finished(reason)

    def failed(self, status: int) -> None:
        self._failed(status)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
