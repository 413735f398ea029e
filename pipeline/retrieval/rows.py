"""Training rows with passages in their questions, as a server with documents asks them (RAFT).

    python -m pipeline.retrieval.rows artifacts/index --questions train.jsonl --out rag.jsonl

Each question becomes one row: with its passage among others, with others alone (the answer is then
that it is not known), or with none, as it was. So a model learns to read passages, to cite them, to
say when they do not answer, and keeps what it answers without them. Zhang et al. 2024.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.defaults import default_tree
from pipeline.config.retrieval import RagConfig
from pipeline.core.commands import Parser, number, run_command
from pipeline.core.errors import DataError
from pipeline.retrieval.context import Passage, render
from pipeline.retrieval.embedding import open_embedder
from pipeline.retrieval.index import EVERYTHING, Index
from pipeline.retrieval.questions import Question, read_questions
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store


def rows(
    search: Search,
    questions: Sequence[Question],
    *,
    instruction: str,
    unknown: str,
    passages: int,
    wrong_share: float,
    none_share: float,
    cites: bool,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Conversations in OpenAI's form, with `passages` saying which kind each is.

    Args:
        passages: in a question at most. wrong_share: of rows without the passage that answers.
            none_share: of rows without any.
        cites: whether answers end with the number of their passage.
    """
    chance = random.Random(seed)
    for question in questions:
        kind = chance.random()
        if kind < none_share:
            yield _row(question.text, question.answer, "none")
            continue
        hits = search.find(question.text, passages + len(question.rows), labels=(EVERYTHING,))
        others = [hit for hit in hits if hit.row not in question.rows][:passages]
        is_wrong = kind < none_share + wrong_share
        taken = [Passage(hit.chunk, hit.chunk.text, hit.score) for hit in others]
        answer = unknown
        if not is_wrong:
            right = search.index.chunk(question.rows[0])
            # The best passages come first, so the right one is mostly among the first.
            number = min(len(taken), int(chance.expovariate(1.5))) + 1
            taken = taken[: passages - 1]
            number = min(number, len(taken) + 1)
            taken.insert(number - 1, Passage(right, right.text, 1.0))
            answer = f"{question.answer} [{number}]" if cites else question.answer
        text = render(instruction, question.text, taken)
        yield _row(text, answer, "wrong" if is_wrong else "right")


def _row(question: str, answer: str, kind: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "passages": kind}


def main(arguments: list[str] | None = None) -> int:
    settings = RagConfig.model_validate(default_tree()["serve"]["rag"])
    parser = Parser(prog="python -m pipeline.retrieval.rows")
    parser.add_argument("index", type=Path, help="what stage=index made, such as artifacts/index")
    parser.add_argument("--questions", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to write")
    parser.add_argument("--instruction", default=settings.instruction)
    parser.add_argument("--unknown", default=settings.unknown)
    parser.add_argument("--passages", type=number(int, 1, 64), default=settings.passages)
    parser.add_argument("--wrong-share", type=number(float, 0, 1), default=0.2)
    parser.add_argument("--none-share", type=number(float, 0, 1), default=0.2)
    parser.add_argument("--no-citations", action="store_true")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=1)
    given = parser.parse_args(arguments)
    return run_command(lambda: _run(given), files=(given.index, given.out, *given.questions))


def _run(given: argparse.Namespace) -> None:
    if given.wrong_share + given.none_share > 1:
        raise DataError("--wrong-share and --none-share are together at most 1")
    index = Index.open(given.index)
    search = Search(index, open_store(index), open_embedder(index.facts.embedding))
    questions, unanswered = read_questions(given.questions, index)
    written = 0
    with given.out.open("w", encoding="utf-8") as stream:
        for row in rows(
            search,
            questions,
            instruction=given.instruction,
            unknown=given.unknown,
            passages=given.passages,
            wrong_share=given.wrong_share,
            none_share=given.none_share,
            cites=not given.no_citations,
            seed=given.seed,
        ):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    search.close()
    print(
        f"{written} rows in {given.out}; {unanswered} questions have no passage and were left out"
    )


if __name__ == "__main__":
    sys.exit(main())
