"""The indexes that a server searches, each under its collection's name."""

import asyncio
import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from pipeline.config.retrieval import EmbeddingConfig, RagConfig
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.retrieval.embedding import Embedder, RetrievalFailed, open_embedder
from pipeline.retrieval.index import Index
from pipeline.retrieval.rerank import open_reranker
from pipeline.retrieval.search import Hit, Search, Timing
from pipeline.retrieval.stores.opening import open_store

log = logging.getLogger("pipeline.serving")
SEARCHES = 4  # at a time; more wait, until serve.rag.timeout


class Collections:
    """
    Args:
        searches: by name.

    Raises:
        ConfigError: two indexes have one name, the default is none of them, or the embedding model
            at hand is not that of an index. ArtifactError: an index is not whole.
    """

    def __init__(self, searches: dict[str, Search], settings: RagConfig) -> None:
        self._searches, self.settings = searches, settings
        self._pool = ThreadPoolExecutor(SEARCHES, thread_name_prefix="retrieval")

    @classmethod
    def from_config(cls, settings: RagConfig) -> "Collections | None":
        """None if the settings name no index."""
        searches: dict[str, Search] = {}
        embedders: dict[str, Embedder | None] = {}
        for folder in settings.indexes:
            index = Index.open(folder)
            name = index.facts.name
            if name in searches:
                raise ConfigError(
                    f"serve.rag.indexes: {searches[name].index.folder} and {folder} are both named "
                    f"{name}: make one of them again with another index.name"
                )
            model = index.facts.identity
            if model and model not in embedders:
                embedders[model] = open_embedder(_here(index.facts.embedding, settings))
            search = searches[name] = Search(
                *(index, open_store(index), embedders.get(model)),
                open_reranker(settings.reranker),
                settings.reranker.candidates,
                settings.word_weight,
            )
            if index.facts.embedding.path is not None:  # an endpoint may start later than we do
                search.check_model()
        if settings.default is not None and settings.default not in searches:
            raise ConfigError(
                f"serve.rag.default={settings.default}: the indexes are {', '.join(searches)}"
            )
        return cls(searches, settings) if searches else None

    @property
    def names(self) -> list[str]:
        return list(self._searches)

    async def find(
        self, name: str, question: str, count: int, labels: Collection[str]
    ) -> tuple[list[Hit], dict[str, float]]:
        """The best passages that a key with these labels may see, and the seconds of the parts.

        Raises:
            RetrievalFailed: a store or an endpoint does not answer, or not in time.
        """
        search, timing = self._searches[name], Timing()

        def work() -> list[Hit]:
            return search.find(
                question,
                count,
                labels=labels,
                min_score=self.settings.min_score,
                timing=timing,
            )

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.settings.timeout):
                found = await loop.run_in_executor(self._pool, work)
        except TimeoutError as error:
            raise RetrievalFailed(
                f"the search in {name} took longer than serve.rag.timeout={self.settings.timeout:g}"
            ) from error
        except RetrievalFailed:
            raise
        except PipelineError as error:  # such as an endpoint that serves another model by now
            raise RetrievalFailed(str(error)) from error
        return found, asdict(timing)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for search in self._searches.values():
            search.close()


def _here(embedding: EmbeddingConfig, settings: RagConfig) -> EmbeddingConfig:
    """Where the model of an index is on this machine."""
    place = settings.embedder
    if place is None:
        return embedding
    if place.startswith(("http://", "https://")):
        if embedding.model is None:
            raise ConfigError(
                f"serve.rag.embedder={place}: an index was made with a local model: give its folder"
            )
        return embedding.but(base_url=place)
    if embedding.path is None:
        raise ConfigError(
            f"serve.rag.embedder={place}: the index was made with an endpoint: give its URL"
        )
    return embedding.but(path=Path(place))
