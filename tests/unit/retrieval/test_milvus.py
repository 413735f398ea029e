"""Milvus Lite finds what the local store finds; its protocol is that of a Milvus cluster."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("milvus_lite", reason="make setup EXTRA=milvus")

from pipeline.core.errors import Busy, ConfigError
from pipeline.retrieval.embedding import RetrievalFailed
from pipeline.retrieval.stores.local import LocalStore
from pipeline.retrieval.stores.milvus import MilvusStore
from tests.unit.retrieval.indexes import WordEmbedder, index_config, make_index, write_documents

EVERYTHING = ("*",)


def make(tmp_path, name="out", store=None, documents=None):
    given = store or {"kind": "milvus", "uri": str(tmp_path / "vectors.db"), "key_variable": None}
    folder = write_documents(tmp_path / name, documents)
    config = index_config(folder, labels={"*taff/*": ["staff"]}, store=given)
    return make_index(tmp_path / f"{name}-index", config, WordEmbedder())


def test_it_follows_the_index_and_finds_what_each_key_may_see(tmp_path):
    index = make(tmp_path)
    store, local = MilvusStore(index), LocalStore(index)
    assert store.sync(index) == (4, 0)
    vector = WordEmbedder().embed(["What does a wire abroad cost?"], "query")[0]
    for labels in (EVERYTHING, (), ("staff",)):
        visible = index.visible(labels)
        found = store.nearest(vector, 4, visible)
        assert found == local.nearest(vector, 4, visible)
        assert len(found) == (3 if not labels else 4)

    folder = Path(store._folder.name)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700  # it asks for no password
    assert store.sync(index) == (0, 0)
    store.close()
    assert not folder.exists()

    documents = {"wires.md": "# Wires\n\n## Abroad\n\nA wire abroad costs 40 dollars.\n",
                 "staff/new.md": "# New\n\nNew text.\n"}  # fmt: skip
    newer = make(tmp_path, "newer", documents=documents)
    store = MilvusStore(newer)
    assert store.sync(newer) == (1, 3)
    assert store.nearest(vector, 4, newer.visible(EVERYTHING))[0] == newer.ids.index(index.ids[2])
    store.close()


def test_a_server_that_is_gone_is_explained_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.retrieval.stores.milvus.SECONDS", 1)
    uri = "http://me:hidden-password@127.0.0.1:9"
    store = MilvusStore(make(tmp_path, store={"kind": "milvus", "uri": uri, "key_variable": None}))
    with pytest.raises(RetrievalFailed, match="gives no answer") as raised:
        store.nearest(np.ones(512, np.float32), 1, np.array([True, True]))
    assert "hidden-password" not in str(raised.value)


def test_a_file_that_is_open_elsewhere_is_named(tmp_path):
    index = make(tmp_path)
    first, second = MilvusStore(index), MilvusStore(index)
    first.sync(index)
    with pytest.raises(Busy, match="open in another process"):
        second.sync(index)
    first.close()
    second.close()


def test_a_token_that_is_not_set_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="NO_TOKEN"):
        MilvusStore(
            make(
                tmp_path,
                store={"kind": "milvus", "uri": "http://h:1", "key_variable": "NO_TOKEN"},
            )
        )
