"""Requests for scores, each with the fields of the API that it is from."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.serving.openai.prompt_types import Texts

MAX_TEXTS = 2048  # as for embeddings


class TextPart(BaseModel):
    """A text as an object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


Documents = Annotated[
    list[str | TextPart], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)
]
Truncation = Annotated[int | None, Field(ge=-1)]


class ScoreRequest(BaseModel):
    """POST /v1/score and /score, compatible with vLLM.

    A single text_1 is compared with each of text_2; lists of the same length are compared in pairs.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="optional if the server has one model")
    text_1: str | Texts
    text_2: str | Texts
    truncate_prompt_tokens: Truncation = Field(
        None, description="tokens that a pair keeps at most; -1: as many as the model reads"
    )
    use_activation: bool = Field(
        True, description="false: the model's logits, not scores from 0 to 1"
    )
    user: Any = None


class RerankRequest(BaseModel):
    """POST /v1/rerank, /rerank and /v2/rerank, compatible with Jina, Cohere and vLLM."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="optional if the server has one model")
    query: str
    documents: Documents
    top_n: int | None = Field(None, ge=0, description="results at most; 0 and null: all")
    return_documents: bool = True
    truncate_prompt_tokens: Truncation = Field(
        None, description="tokens that query and document keep at most; -1: as many as fit"
    )
    max_tokens_per_doc: int | None = Field(
        None, ge=1, description="Cohere's: tokens that each document keeps at most"
    )
    use_activation: bool = Field(
        True, description="false: the model's logits, not scores from 0 to 1"
    )
    user: Any = None


class RankingRequest(BaseModel):
    """POST /v1/ranking, compatible with NIM."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="optional if the server has one model")
    query: TextPart
    passages: list[TextPart] = Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)
    truncate: Literal["NONE", "END"] = Field(
        "NONE", description="END: passages that are too long lose their end"
    )
    user: Any = None
