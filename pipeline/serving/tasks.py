"""What a model is for, which decides the routes that its server has."""

from dataclasses import dataclass

from pipeline.engines.base import Engine


@dataclass(frozen=True)
class Task:
    """does: what such a model does, in words. paths: its main routes, the first for messages."""

    does: str
    paths: tuple[str, ...]


GENERATION = Task(
    "generates text",
    (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/chat/completions/render", "/v1/completions/render", "/tokenize", "/detokenize"),
    ),
)
EMBEDDING = Task("makes embeddings", ("/v1/embeddings",))
SCORING = Task(
    "scores texts",
    ("/v1/rerank", "/v1/score", "/v1/ranking", "/rerank", "/v2/rerank", "/score"),
)
TASKS = (GENERATION, EMBEDDING, SCORING)


def task_of(engine: Engine, *, generates: bool) -> Task:
    """The task of an engine's model. generates: whether it has a renderer of prompts."""
    if generates:
        return GENERATION
    return SCORING if "scores" in engine.features else EMBEDDING


def missing_route(path: str, model: str, task: Task) -> str | None:
    """What to say of a path that other models have; None if none has it."""
    if not any(path in other.paths for other in TASKS):
        return None
    use = " or ".join(task.paths[:2])
    return f"the model {model!r} {task.does} and has no {path}: use {use}"
