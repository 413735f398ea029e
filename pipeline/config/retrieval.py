"""Settings of retrieval: stage=index, and what the server does with an index (serve.rag)."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.endpoint import Url, Variable
from pipeline.config.section import Batch, Form, Place, Seconds, Section, Share

Collection = Annotated[
    str, Form(r"[a-z][a-z0-9_]{0,62}", "a name of small letters, digits and _, such as bank")
]
Label = Annotated[str, Form(r"[\w.@-]{1,64}", "a label of letters, digits and ._@-")]
# A folder, or one inside an installed package, which is found without running its code.
PACKAGE = "package:"


class EmbeddingConfig(Section):
    """The model that turns texts into vectors: a local folder or an endpoint. Without either, an
    index is searched by words alone."""

    path: Place | None = Field(
        description="Folder of a sentence-embedding model, or package:NAME/FOLDER for one inside "
        "an installed package; null: none, or the endpoint"
    )
    base_url: Url | None = Field(
        description="URL of an embedding server with OpenAI's API, with /v1, such as a NIM or our "
        "own stage=serve; null: none, or the folder"
    )
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        description="The model's name at the endpoint"
    )
    key_variable: Variable | None = Field(
        description="Environment variable that holds the endpoint's API key; null sends none"
    )
    input_type: bool = Field(
        description="Whether the endpoint is told query or passage in `input_type`, as NVIDIA's "
        "retrieval NIMs require"
    )
    query_prefix: str = Field(
        max_length=1000, description='Text before each question, such as "query: "'
    )
    passage_prefix: str = Field(
        max_length=1000, description='Text before each passage, such as "passage: "'
    )
    batch_size: Batch = Field(description="Texts in a request or a pass")
    timeout: Seconds = Field(description="Seconds until the endpoint's answer is complete")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.path is not None and self.base_url is not None:
            raise ValueError("path and base_url are two models: set one of them to null")
        if self.base_url is not None and self.model is None:
            raise ValueError("base_url needs the model's name there: set embedding.model")
        if self.base_url is None and (self.model or self.key_variable or self.input_type):
            raise ValueError(
                "model, key_variable and input_type are of an endpoint: set base_url, too"
            )
        if not self.embeds and (self.query_prefix or self.passage_prefix):
            raise ValueError("a prefix has no effect without a model: set path or base_url")
        return self

    @property
    def embeds(self) -> bool:
        """Whether there is a model."""
        return self.path is not None or self.base_url is not None


class StoreConfig(Section):
    """Where vectors and words are searched."""

    kind: Literal["local", "milvus"] = Field(
        description="Where passages are searched: in the index itself, by the server (local), or "
        "in a database (milvus)"
    )
    uri: Annotated[str, Form(r"\S{1,1000}", "an address without spaces")] | None = Field(
        description="Address of Milvus: http://HOST:19530, or a file NAME.db (Milvus Lite)"
    )
    key_variable: Variable | None = Field(
        description="Environment variable with Milvus's token; null sends none"
    )

    @model_validator(mode="after")
    def _has_address(self) -> Self:
        if self.kind == "local" and (self.uri or self.key_variable):
            raise ValueError("kind=local has no address: leave uri and key_variable out")
        if self.kind != "local" and self.uri is None:
            raise ValueError(f"kind={self.kind} needs an address: set store.uri")
        return self


class IndexConfig(Section):
    """Documents, and the index that is made of them. Sizes are in characters."""

    name: Collection = Field(description="Name of the collection, which requests give")
    folder: Place | None = Field(description="Folder of the documents; null: there are none")
    documents: tuple[str, ...] = Field(
        min_length=1, description="Documents, as globs below the folder"
    )
    labels: dict[str, tuple[Label, ...]] = Field(
        description="Who may see which documents, as {staff/*: [staff]}: only keys with one "
        "of its labels find a labelled document; the others are for everybody"
    )
    chunk_size: Annotated[int, Field(ge=50, le=20_000)] = Field(
        description="Most characters of a passage; a section that is longer is cut"
    )
    chunk_overlap: Annotated[int, Field(ge=0, le=5_000)] = Field(
        description="Characters that a passage repeats of the one before it in the same section"
    )
    embedding: EmbeddingConfig
    store: StoreConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.store.kind != "local" and not self.embedding.embeds:
            raise ValueError(
                f"store.kind={self.store.kind} searches vectors: set embedding.path or "
                "embedding.base_url"
            )
        if self.store.kind != "local" and not self.embedding.embeds:
            raise ValueError(
                f"store.kind={self.store.kind} searches vectors: set embedding.path or "
                "embedding.base_url"
            )
        if self.chunk_overlap * 2 > self.chunk_size:
            raise ValueError("chunk_overlap is more than half of chunk_size: lower it")
        for glob in (*self.documents, *self.labels):
            if PurePosixPath(glob).is_absolute() or ".." in PurePosixPath(glob).parts or not glob:
                raise ValueError(f"{glob!r} is not below index.folder: give a glob such as **/*.md")
        return self


class RerankerConfig(Section):
    """A cross-encoder that orders passages anew, behind an endpoint."""

    url: Url | None = Field(
        description="URL of its route: …/v1/rerank, or …/v1/ranking of NVIDIA's NIM; null uses none"
    )
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        description="The model's name there"
    )
    key_variable: Variable | None = Field(
        description="Environment variable that holds the API key; null sends none"
    )
    candidates: Annotated[int, Field(ge=1, le=200)] = Field(
        description="Passages that it is given to order"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.url is None and (self.model or self.key_variable):
            raise ValueError("model and key_variable are of an endpoint: set url, too")
        if self.url is not None and self.model is None:
            raise ValueError("url needs the model's name there: set reranker.model")
        return self


class RagConfig(Section):
    """Answers from documents."""

    indexes: tuple[Place, ...] = Field(
        description="Folders of indexes that stage=index made, such as artifacts/index"
    )
    default: Collection | None = Field(
        description="Collection for chat requests that name none; null: only those that name one"
    )
    passages: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Passages that the model is given, if they fit into its prompt"
    )
    instruction: Annotated[str, Field(min_length=1, max_length=4000)] = Field(
        description="What the model is told before the passages; training rows have the same"
    )
    min_score: Share = Field(
        description="Least score of a passage, 0 to 1: of its cosine and its share of the "
        "question's words, by word_weight"
    )
    word_weight: Share = Field(
        description="Weight of the words in a score; the rest is the cosine's. An index without an "
        "embedding model has only words"
    )
    on_nothing: Literal["say", "answer"] = Field(
        description="If nothing is found: say that it is not known, or let the model answer"
    )
    unknown: Annotated[str, Field(min_length=1, max_length=2000)] = Field(
        description="What is said then"
    )
    on_error: Literal["refuse", "answer"] = Field(
        description="If the store or an endpoint is down: refuse the request with status 503, or "
        "let the model answer without documents"
    )
    timeout: Seconds = Field(description="Seconds until a search is complete")
    embedder: Annotated[str, Form(r"\S{1,1000}", "a folder or a URL")] | None = Field(
        description="Where the indexes' embedding model is here, a folder or a URL; null: where "
        "it was when they were made"
    )
    reranker: RerankerConfig

    @model_validator(mode="after")
    def _has_indexes(self) -> Self:
        if self.default is not None and not self.indexes:
            raise ValueError(f"default={self.default} needs an index: set serve.rag.indexes")
        return self
