"""What people think of answers, as rows that training learns preferences from (serve.feedback).

    POST /v1/feedback   a thumb up or down, and perhaps a corrected answer
    POST /v1/votes      which of two models' answers is better

Rows are recorded only with the header `X-Record-Consent: yes`. A rating becomes a row with a label
(finetune.objective=kto), a correction or a vote a pair (dpo and the others). Votes without consent
are counted, and their texts are not kept.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from pipeline.models.chat.messages import Unusable, parse_messages
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.transcripts import CONSENT
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.models import ServedModels

MAX_TURNS = 256
MAX_CHARACTERS = 200_000  # of a text
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class Turn(BaseModel):
    """A turn of the conversation before the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]


Turns = Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS)]


class FeedbackRequest(BaseModel):
    """POST /v1/feedback: a rating of one answer, a correction of it, or both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name
    messages: Turns
    answer: Text
    rating: Literal["good", "bad"] | None = None
    correction: Text | None = Field(None, description="the answer as it should have been")


class Candidate(BaseModel):
    """One of two answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name
    answer: Text


class VoteRequest(BaseModel):
    """POST /v1/votes: which of two answers to the same messages is better."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: Turns
    first: Candidate
    second: Candidate
    better: Literal["first", "second", "tie"]


class Feedback:
    """Writes rows with labels and rows with pairs into two folders, because they train different
    objectives.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._labels = Recorder(folder / "labels", setting="serve.feedback")
        self._pairs = Recorder(folder / "pairs", setting="serve.feedback")

    def label(self, messages: list[dict[str, Any]], answer: str, good: bool, **facts: Any) -> None:
        turns = [*messages, {"role": "assistant", "content": answer}]
        self._labels.add({"messages": turns, "label": good, **facts, **_now()})

    def pair(
        self, messages: list[dict[str, Any]], chosen: str, rejected: str, **facts: Any
    ) -> None:
        self._pairs.add(
            {"messages": messages, "chosen": chosen, "rejected": rejected, **facts, **_now()}
        )

    def close(self) -> None:
        self._labels.close()
        self._pairs.close()


def _now() -> dict[str, str]:
    return {"time": datetime.now(UTC).isoformat(timespec="seconds")}


def add_feedback(app: FastAPI, feedback: Feedback, models: ServedModels, metrics: Metrics) -> None:
    """Add the routes."""

    @app.post("/v1/feedback")
    async def rate(body: FeedbackRequest, request: Request) -> dict[str, bool]:
        models.find(body.model)
        request_context.current().model = body.model
        if body.rating is None and body.correction is None:
            raise invalid("rating", "give a rating or a correction")
        if body.correction == body.answer:
            raise invalid("correction", "it is the answer itself: send a rating instead")
        if not _consents(request):
            raise ApiError(
                403,
                "feedback is kept with its conversation: send X-Record-Consent: yes if the user "
                "agrees",
                code="consent_required",
            )
        messages, facts = _turns(body.messages), {"model": body.model, "source": "feedback"}
        if body.rating:
            metrics.rated(body.model, body.rating)
            feedback.label(messages, body.answer, body.rating == "good", **facts)
        if body.correction:
            metrics.rated(body.model, "corrected")
            feedback.pair(messages, body.correction, body.answer, **facts)
        return {"recorded": True}

    @app.post("/v1/votes")
    async def vote(body: VoteRequest, request: Request) -> dict[str, bool]:
        first, second = body.first, body.second
        for candidate in (first, second):
            models.find(candidate.model)
        if first.model == second.model:
            raise invalid("second", "both answers are of the same model")
        if body.better == "tie":
            metrics.voted(first.model, second.model, "tie")
            metrics.voted(second.model, first.model, "tie")
            return {"recorded": False}
        won, lost = (first, second) if body.better == "first" else (second, first)
        metrics.voted(won.model, lost.model, "won")
        recorded = _consents(request) and won.answer != lost.answer
        if recorded:
            facts = {"model": won.model, "rejected_model": lost.model, "source": "vote"}
            feedback.pair(_turns(body.messages), won.answer, lost.answer, **facts)
        return {"recorded": recorded}


def _consents(request: Request) -> bool:
    return request.headers.get(CONSENT, "").strip().lower() == "yes"


def _turns(messages: list[Turn]) -> list[dict[str, Any]]:
    """The conversation as `prepare` reads it.

    Raises:
        ApiError: it cannot become a training row.
    """
    turns = [turn.model_dump() for turn in messages]
    try:
        parse_messages(turns, answered=False)
    except Unusable as error:
        raise invalid("messages", f"{error.reason}: {error.detail}") from None
    for turn in turns:
        if turn["role"] == "assistant":
            turn["weight"] = 0
    return turns
