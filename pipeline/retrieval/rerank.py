"""A cross-encoder behind an endpoint: Cohere's route, as Jina and vLLM have it, or NVIDIA NIM's."""

from collections.abc import Sequence
from typing import Any

from pipeline.client.addresses import without_password
from pipeline.config.retrieval import RerankerConfig
from pipeline.core import secrets
from pipeline.retrieval.embedding import RetrievalFailed, http_client, post

TIMEOUT = 10.0  # seconds
NIM = "/ranking"  # the end of the route's path


def open_reranker(config: RerankerConfig) -> "EndpointReranker | None":
    """The reranker of the settings; None if they name none.

    Raises:
        ConfigError: the key's variable is not set.
    """
    return EndpointReranker(config) if config.url is not None else None


class EndpointReranker:
    """POST …/rerank {query, documents} or …/ranking {query: {text}, passages: [{text}]}."""

    def __init__(self, config: RerankerConfig) -> None:
        self._url = secrets.expand(str(config.url))
        self._model = config.model
        self._place = without_password(self._url)
        self._client = http_client(self._url, config.key_variable, TIMEOUT, "serve.rag.reranker")

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """One score a passage, in their order.

        Raises:
            RetrievalFailed: the endpoint does not answer, or not for each passage.
        """
        is_nim = self._url.rstrip("/").endswith(NIM)
        body: dict[str, Any] = {"model": self._model}
        if is_nim:
            texts = [{"text": passage} for passage in passages]
            body |= {"query": {"text": question}, "passages": texts, "truncate": "END"}
        else:
            body |= {"query": question, "documents": list(passages)}
        answer = post(self._client, self._url, body, self._place)
        try:
            given = answer["rankings"] if is_nim else answer["results"]
            name = "logit" if is_nim else "relevance_score"
            scores = {int(entry["index"]): float(entry[name]) for entry in given}
            return [scores[place] for place in range(len(passages))]
        except (KeyError, TypeError, ValueError) as error:
            raise RetrievalFailed(
                f"{self._place} does not give each of {len(passages)} passages a score: check "
                "serve.rag.reranker.url"
            ) from error

    def close(self) -> None:
        self._client.close()
