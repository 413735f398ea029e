"""How well an index finds what answers a question.

    python -m pipeline.retrieval.measures artifacts/index --questions data/bank/test.jsonl

Prints recall@k, MRR and nDCG with 95 % intervals over the questions, and for questions that the
documents do not answer (--others), how many find nothing. Ends with exit code 5 if a figure is
below what --min-recall or --min-nothing asks for, so that a release can be gated on it.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.defaults import default_tree
from pipeline.config.retrieval import RagConfig
from pipeline.config.section import explain
from pipeline.core.commands import Parser, number, run_command
from pipeline.core.errors import ConfigError, DataError, GateFailed
from pipeline.evaluation.confidence import Estimate, bootstrap
from pipeline.retrieval.embedding import open_embedder
from pipeline.retrieval.index import EVERYTHING, Index
from pipeline.retrieval.questions import Question, read_questions
from pipeline.retrieval.rerank import open_reranker
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store

KS = (1, 3, 5, 10)
SAMPLES, SEED = 1000, 1


def recall(found: Sequence[int], right: Sequence[int], k: int) -> float:
    """1 if one of the right passages is among the first k, else 0: one is enough for an answer."""
    return float(any(row in right for row in found[:k]))


def reciprocal_rank(found: Sequence[int], right: Sequence[int]) -> float:
    return next((1 / rank for rank, row in enumerate(found, 1) if row in right), 0.0)


def ndcg(found: Sequence[int], right: Sequence[int], k: int) -> float:
    """Normalized discounted cumulative gain of the first k, each right passage with gain 1."""
    gain = sum(1 / math.log2(rank + 1) for rank, row in enumerate(found[:k], 1) if row in right)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(set(right))) + 1))
    return gain / ideal


def measure(search: Search, questions: Sequence[Question]) -> dict[str, Estimate]:
    """Each figure with its interval, of the passages that a key for every document finds.

    Raises:
        RetrievalFailed: a store or an endpoint does not answer.
    """
    most = max(KS)
    orders = [
        [hit.row for hit in search.find(question.text, most, labels=(EVERYTHING,))]
        for question in questions
    ]
    values: dict[str, list[float]] = {
        f"recall@{k}": [recall(o, q.rows, k) for o, q in zip(orders, questions, strict=True)]
        for k in KS
    }
    pairs = list(zip(orders, questions, strict=True))
    values["mrr@10"] = [reciprocal_rank(order, question.rows) for order, question in pairs]
    values["ndcg@10"] = [ndcg(order, question.rows, most) for order, question in pairs]
    return {name: bootstrap(found, samples=SAMPLES, seed=SEED) for name, found in values.items()}


def nothing_found(search: Search, questions: Sequence[str], min_score: float) -> list[float]:
    """1 for each question for which no passage reaches the least score, else 0."""
    return [
        float(not search.find(text, 1, labels=(EVERYTHING,), min_score=min_score))
        for text in questions
    ]


def main(arguments: list[str] | None = None) -> int:
    settings = RagConfig.model_validate(default_tree()["serve"]["rag"])
    parser = Parser(prog="python -m pipeline.retrieval.measures")
    parser.add_argument("index", type=Path, help="what stage=index made, such as artifacts/index")
    parser.add_argument(
        "--questions", type=Path, nargs="+", required=True, help="conversations, as JSON lines"
    )
    parser.add_argument(
        "--others", type=Path, help="questions that the documents do not answer, one a line"
    )
    share = number(float, 0, 1)
    parser.add_argument("--min-score", type=share, default=settings.min_score)
    parser.add_argument("--word-weight", type=share, default=settings.word_weight)
    parser.add_argument("--reranker", help="URL of a reranker, as serve.rag.reranker.url")
    parser.add_argument("--reranker-model", help="the model's name there")
    parser.add_argument("--min-recall", type=share, help="least recall@3")
    parser.add_argument("--min-nothing", type=share, help="least share of --others without a find")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(arguments)
    files = (given.index, given.others, given.json, *given.questions)
    return run_command(lambda: _run(given, settings), files=files)


def _run(given: argparse.Namespace, settings: RagConfig) -> None:
    figures = _figures(given, settings)
    for name, said in figures.items():
        if isinstance(said, dict):
            print(f"{name:<16} {said['value']:.3f}  [{said['low']:.3f}, {said['high']:.3f}]")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    for name, least in (("recall@3", given.min_recall), ("nothing_found", given.min_nothing)):
        if least is not None and figures[name]["value"] < least:
            raise GateFailed(f"{name} is {figures[name]['value']:.3f}, below {least}")


def _figures(given: argparse.Namespace, settings: RagConfig) -> dict[str, Any]:
    index = Index.open(given.index)
    reranker = settings.reranker
    if given.reranker:
        try:
            reranker = reranker.but(url=given.reranker, model=given.reranker_model)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(explain(first, "serve.rag.reranker")) from None
    search = Search(
        *(index, open_store(index), open_embedder(index.facts.embedding)),
        *(open_reranker(reranker), reranker.candidates, given.word_weight),
    )
    try:
        questions, unanswered = read_questions(given.questions, index)
        if not questions:
            raise DataError(
                f"no passage holds the answer of any question in {given.questions[0]}: give "
                'questions about these documents, or name the passage in each row\'s "source"'
            )
        figures: dict[str, Any] = {
            name: asdict(value) for name, value in measure(search, questions).items()
        }
        if given.others:
            others = [
                line
                for line in given.others.read_text("utf-8", "replace").splitlines()
                if line.strip()
            ]
            values = nothing_found(search, others, given.min_score)
            figures["nothing_found"] = asdict(bootstrap(values, samples=SAMPLES, seed=SEED))
            kept = nothing_found(search, [q.text for q in questions], given.min_score)
            wrongly = bootstrap(kept, samples=SAMPLES, seed=SEED)
            figures["wrongly_nothing"] = asdict(wrongly)
        elif given.min_nothing is not None:
            raise DataError("--min-nothing needs --others")
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
    finally:
        search.close()
    return {
        **figures,
        "questions": len(questions),
        "questions_without_passage": unanswered,
        "passages": len(index),
        "index": index.digest,
        "embedding": str(index.facts.embedding.path or index.facts.embedding.model or "words"),
    }


if __name__ == "__main__":
    sys.exit(main())
