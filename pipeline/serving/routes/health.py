"""Health, load and metrics, at the paths that NIM, vLLM, KServe and SageMaker look for."""

from fastapi import FastAPI, Response

from pipeline.engines.base import Engine
from pipeline.serving.metrics import Metrics
from pipeline.serving.openai.responses import Json
from pipeline.serving.readiness import Readiness

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_health(app: FastAPI, readiness: Readiness, engine: Engine, metrics: Metrics) -> None:
    """Add the routes."""

    # Some load balancers use HEAD.
    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live")
    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.head("/health/ready", include_in_schema=False)
    @app.head("/health", include_in_schema=False)
    @app.get("/health/ready")
    @app.get("/v1/health/ready")
    @app.get("/health")
    @app.get("/ping")
    @app.post("/ping")
    async def ready() -> Response:
        reason = readiness.reason_not_ready()
        return Json({"status": reason or "ready"}, 503 if reason else 200)

    @app.get("/load")
    async def load() -> dict[str, int]:
        now = engine.load()
        return {"server_load": now.running + now.waiting}

    @app.get("/metrics")
    @app.get("/v1/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)
