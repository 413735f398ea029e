"""Milvus: a cluster at http://…, or Milvus Lite, which runs in this process on a file NAME.db.

Milvus Lite is Python, for trials: it filters rows one by one, takes seconds for a filtered search
in 100,000 passages, and lets one process open a file.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config.retrieval import StoreConfig
from pipeline.core import secrets
from pipeline.core.errors import Busy, ConfigError
from pipeline.retrieval.embedding import RetrievalFailed
from pipeline.retrieval.index import Index, group_key

if TYPE_CHECKING:
    from pymilvus import MilvusClient

INSERTED = 1000  # rows of a request
SECONDS = 30
MAX_ID, MAX_GROUP = 32, 4096
T = TypeVar("T")


class MilvusStore:
    """One collection an index and embedding model, named NAME_IDENTITY.

    Raises:
        ConfigError: the token's variable is not set.
    """

    def __init__(self, index: Index) -> None:
        self._index, self._settings = index, index.facts.store
        self.collection = f"{index.facts.name}_{index.facts.identity[:8]}"
        self._token = key_of(self._settings)
        self._client: MilvusClient | None = None
        self._lite: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def sync(self, index: Index) -> tuple[int, int]:
        return self._try(lambda client: self._sync(client, index))

    def _sync(self, client: "MilvusClient", index: Index) -> tuple[int, int]:
        if index.vectors is None:
            return 0, 0
        if not client.has_collection(self.collection):
            self._create(client, index.facts.dimensions)
        client.load_collection(self.collection)
        held = set(self._ids(client))
        gone = sorted(held - index.rows.keys())
        new = [row for row, id in enumerate(index.ids) if id not in held]
        for part in _parts(gone):
            client.delete(self.collection, ids=part)
        keys = [group_key(group) for group in index.facts.groups]
        for part in _parts(new):
            rows = [
                {
                    "id": index.ids[row],
                    "labels": keys[index.groups[row]],
                    "vector": index.vectors[row].tolist(),
                }
                for row in part
            ]
            client.insert(self.collection, rows)
        if gone or new:
            client.flush(self.collection)
        return len(new), len(gone)

    def _create(self, client: "MilvusClient", dimensions: int) -> None:
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, max_length=MAX_ID, is_primary=True)
        schema.add_field("labels", DataType.VARCHAR, max_length=MAX_GROUP)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
        wanted = client.prepare_index_params()
        wanted.add_index(
            *("vector", "HNSW"), metric_type="IP", params={"M": 16, "efConstruction": 200}
        )
        client.create_collection(
            self.collection, schema=schema, index_params=wanted, consistency_level="Strong"
        )

    def _ids(self, client: "MilvusClient") -> Iterator[str]:
        found = client.query_iterator(
            self.collection, filter='id != ""', output_fields=["id"], batch_size=INSERTED
        )
        while rows := found.next():
            yield from (row["id"] for row in rows)
        found.close()

    def nearest(
        self, vector: npt.NDArray[np.float32], count: int, visible: npt.NDArray[np.bool_]
    ) -> list[int]:
        keys = [
            group_key(g) for g, seen in zip(self._index.facts.groups, visible, strict=True) if seen
        ]
        # Keys hold letters, digits and ._@-, alone: config/retrieval.py.
        names = ", ".join(f'"{key}"' for key in keys)
        filtered = "" if visible.all() else f"labels in [{names}]"
        found = self._try(
            lambda client: client.search(
                self.collection,
                data=[vector.tolist()],
                anns_field="vector",
                limit=count,
                filter=filtered,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": {"ef": max(64, 2 * count)}},
            )
        )
        rows = self._index.rows
        return [rows[hit["id"]] for hit in found[0] if hit["id"] in rows]

    def close(self) -> None:
        if self._client:
            self._client.close()
        if self._lite:
            server, database = self._lite
            server.stop(0)
            database.close()
        if self._folder:
            self._folder.cleanup()
        self._client = self._lite = self._folder = None

    def _try(self, work: Callable[["MilvusClient"], T]) -> T:
        from pymilvus.exceptions import MilvusException

        try:
            if self._client is None:
                self._client = self._connect()
            return work(self._client)
        except MilvusException as error:
            place = secrets.mask_url(str(self._settings.uri))
            why = secrets.mask(" ".join(str(error).split()))[:300]
            raise RetrievalFailed(f"Milvus at {place} gives no answer: {why}") from error

    def _connect(self) -> "MilvusClient":
        from pymilvus import MilvusClient

        uri = secrets.expand(str(self._settings.uri))
        if uri.endswith(".db"):
            uri = self._open_lite(Path(uri))
        return MilvusClient(uri=uri, token=self._token, timeout=SECONDS)

    def _open_lite(self, file: Path) -> str:
        """Milvus Lite's server, which asks for no password, on a socket of this user's alone."""
        from milvus_lite import DataDirLockedError
        from milvus_lite.adapter.grpc.server import start_server_in_thread

        file.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="milvus-")
        socket = os.path.join(self._folder.name, "socket")
        try:
            server, database, _ = start_server_in_thread(str(file), host="unix", port=socket)
        except DataDirLockedError as error:
            raise Busy(
                f"index.store.uri={file} is open in another process, and Milvus Lite allows one: "
                "stop that one, or use index.store.kind=local or a Milvus server"
            ) from error
        self._lite = server, database
        return f"unix:{socket}"


def key_of(settings: StoreConfig) -> str:
    """The store's token or password; "" if it needs none.

    Raises:
        ConfigError: the variable is not set.
    """
    if settings.key_variable is None:
        return ""
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"index.store.key_variable={settings.key_variable}: this environment variable is not "
            "set: set it to the store's key"
        )
    secrets.remember({"api_key": key})
    return key


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), INSERTED):
        yield values[start : start + INSERTED]
