"""Questions and answers from Markdown: blocks stay blocks, and nothing is lost without a word."""

from pathlib import Path

import pytest

from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation, Rejected


def read(folder: Path, text: str, name: str = "a.md") -> list[Conversation | Rejected]:
    (folder / name).write_text(text)
    return list(read_file(folder / name, name))


def pairs(rows: list[Conversation | Rejected]) -> list[tuple[str, str]]:
    assert all(isinstance(row, Conversation) for row in rows), rows
    return [
        tuple(m["content"] for m in row.messages) for row in rows if isinstance(row, Conversation)
    ]  # type: ignore[misc]


DOCUMENT = """T

## How do I install?

Run
this:

```sh
## update first


apt update
	# then
```
Done.

## Steps?

1. Open
2. Tap
   - gently


- one

# Chapter two

## Fees ##

| a | b |
|---|---|
| 1 | 2 |

    indented  code

See [x].

[x]: http://localhost
> ## quoted
"""


def test_blocks_of_answers_stay(tmp_path: Path) -> None:
    install, steps, fees = pairs(read(tmp_path, DOCUMENT))
    assert install == (
        "How do I install?",
        "Run this:\n\n```sh\n## update first\n\n\napt update\n\t# then\n```\nDone.",
    )
    assert steps == ("Steps?", "1. Open\n2. Tap\n   - gently\n\n- one")
    assert fees == (
        "Fees",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n    indented  code\n\nSee [x].\n\n"
        "[x]: http://localhost\n> ## quoted",
    )


@pytest.mark.parametrize("fence", ["```", "~~~~", "    "])
def test_a_heading_in_code_is_no_question(tmp_path: Path, fence: str) -> None:
    code = "    ## no" if fence == "    " else f"{fence}\n## no\n{fence}"
    assert pairs(read(tmp_path, f"T\n\n## Q\n\n{code}\n")) == [("Q", code)]


def test_code_without_an_end_takes_the_rest(tmp_path: Path) -> None:
    assert pairs(read(tmp_path, "## Q\n```\n## no\n")) == [("Q", "```\n## no")]


def test_underlined_headings_and_front_matter(tmp_path: Path) -> None:
    text = "---\ntitle: T\n---\n\nQ one\n-----\nA\n\nChapter\n=======\n\n### Q two\nB  \nC\n"
    assert pairs(read(tmp_path, text)) == [("Q one", "A"), ("Q two", "B\nC")]


def test_a_rule_in_plain_text_is_no_heading(tmp_path: Path) -> None:
    assert pairs(read(tmp_path, "T\n## Q\nA\n---\nB\n", "a.txt")) == [("Q", "A\n---\nB")]


def test_text_below_a_chapter_is_rejected(tmp_path: Path) -> None:
    good, bad, last = read(tmp_path, "# T\n\n## Q\nA\n\n# Two\n\nIntro.\n\n## R\nB\n")
    assert isinstance(good, Conversation)
    assert good.messages[1]["content"] == "A"
    assert isinstance(bad, Rejected)
    assert (bad.line, bad.reason) == (8, "text outside a section")
    assert isinstance(last, Conversation)


def test_a_heading_without_a_space_is_rejected(tmp_path: Path) -> None:
    (bad,) = read(tmp_path, "## Q\nA\n##Fees?\nNone.\n")
    assert isinstance(bad, Rejected)
    assert (bad.line, bad.reason) == (3, "bad heading")


@pytest.mark.parametrize(
    "piece", ["> ", "- ", "[", "`", "* a\n", "<b\n", "|a|\n|-|\n", "\t", "1. "]
)
def test_deep_and_long_structure_is_read_quickly(tmp_path: Path, piece: str) -> None:
    assert read(tmp_path, "## Q\nA\n\n" + piece * 2000 + "\n\n# C\n## R\nB\n")
