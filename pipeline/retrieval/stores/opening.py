"""Opens the store that an index names."""

from pipeline.core.extras import require
from pipeline.retrieval.index import Index
from pipeline.retrieval.stores.base import Store
from pipeline.retrieval.stores.local import LocalStore


def open_store(index: Index) -> Store:
    """The store of an index; a database is connected to when it is first used.

    Raises:
        MissingRuntime: its client library is not installed. ConfigError: its key is not set.
    """
    settings = index.facts.store
    if settings.kind == "local":
        return LocalStore(index)
    if settings.kind == "milvus":
        require("milvus", "index.store.kind=milvus", "index.store.kind=local")
        from pipeline.retrieval.stores.milvus import MilvusStore

        return MilvusStore(index)
    require("pgvector", "index.store.kind=pgvector", "index.store.kind=local")
    from pipeline.retrieval.stores.pgvector import PgvectorStore

    return PgvectorStore(index)
