"""Questions that a text marks with Q: and A: or with numbers, and those of other documents."""

from pathlib import Path

import pytest

from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation, Rejected
from tests.unit.data.pdf_files import pdf
from tests.unit.data.test_documents import written

LETTERED = """Harbor Bank FAQ

Q: When do you open?
A: At nine,
every day.

Q: What does a wire
cost?

A: It depends:

- five dollars
- or ten
"""
NUMBERED = """FAQ

1. When do you open?
At nine.

2) How do I pay?
Do this:

1. Open the app.
2. Tap on pay.

3. And then? Wait a day.
"""


def rows(file: Path) -> list[tuple[int, str, str]]:
    found = []
    for row in read_file(file, file.name):
        if isinstance(row, Rejected):
            found.append((row.line, row.reason, row.excerpt))
        else:
            question, answer = row.messages
            found.append((row.line, question["content"], answer["content"]))
    return found


EXPECTED = [
    (3, "When do you open?", "At nine, every day."),
    (7, "What does a wire cost?", "It depends:\n\n- five dollars\n- or ten"),
]


@pytest.mark.parametrize(
    ("asks", "answers"),
    [("Q:", "A:"), ("Q1.", "A1."), ("**Q:**", "**A:**"), ("Question 2:", "Answer:"),
     ("Frage:", "Antwort:"), ("3. Q:", "A:"), ("**Q**:", "a:")],
)  # fmt: skip
def test_lettered(tmp_path: Path, asks: str, answers: str) -> None:
    text = LETTERED.replace("Q:", asks).replace("A:", answers)
    assert rows(written(tmp_path, "a.txt", text)) == EXPECTED
    assert rows(written(tmp_path, "a.md", text)) == EXPECTED


def test_numbered(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "a.txt", NUMBERED)) == [
        (3, "When do you open?", "At nine."),
        (6, "How do I pay?", "Do this:\n\n1. Open the app.\n2. Tap on pay."),
        (12, "And then?", "Wait a day."),
    ]


def test_a_list_is_no_question(tmp_path: Path) -> None:
    text = "T\n\n## How?\n1. Open\n2. Tap\n"
    assert rows(written(tmp_path, "a.txt", text)) == [(3, "How?", "1. Open\n2. Tap")]
    text = "T\n\n1. Open\n2. Tap\n"
    assert rows(written(tmp_path, "a.txt", text)) == [(3, "text outside a section", "1. Open")]


def test_a_question_without_an_answer_and_a_text_without_a_question_are_rejected(
    tmp_path: Path,
) -> None:
    text = "T\nIntro.\n\n# Chapter\nLoose.\n\nQ: One?\n\nQ: Two?\nA: Yes.\n"
    assert rows(written(tmp_path, "a.txt", text)) == [
        (2, "text outside a section", "Intro."),
        (5, "text outside a section", "Loose."),
        (7, "empty assistant turn", "One?"),
        (9, "Two?", "Yes."),
    ]


def test_a_line_that_is_not_utf8_spoils_its_question_alone(tmp_path: Path) -> None:
    raw = b"T\n\nQ: One?\nA: Caf\xe9\n\nQ: Two?\nA: Yes.\n"
    assert [row[:2] for row in rows(written(tmp_path, "a.txt", raw))] == [
        (4, "bad UTF-8"),
        (6, "Two?"),
    ]


def test_headings_of_chapters_are_no_questions(tmp_path: Path) -> None:
    text = "# T\n## Cards\n### What is gold?\nA card.\n## Wires?\nYes.\n"
    assert rows(written(tmp_path, "a.md", text)) == [
        (3, "What is gold?", "A card."),
        (5, "Wires?", "Yes."),
    ]


def test_html(tmp_path: Path) -> None:
    page = "<h1>FAQ</h1>\n<h2>Open?</h2>\n<p>At nine.\n<dl>\n<dt>Cost?<dd># 5</dl>"
    assert rows(written(tmp_path, "a.html", page)) == [
        (2, "Open?", "At nine."),
        (5, "Cost?", "# 5"),
    ]
    page = "<h1>FAQ</h1>\n<p>Q: Open?\n<p>A: At\nnine.\n<p>Q: Cost?<br>A: Five."
    assert rows(written(tmp_path, "b.html", page)) == [
        (2, "Open?", "At nine."),
        (5, "Cost?", "Five."),
    ]


def test_pdf_and_docx(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    docx = pytest.importorskip("docx", reason="make setup EXTRA=documents")
    pages = [
        [(700, 11, True, f"Question {n}?"), (686, 11, False, "An answer of"),
         (672, 11, False, "two lines.")]
        for n in range(2)
    ]  # fmt: skip
    assert rows(written(tmp_path, "a.pdf", pdf(pages))) == [
        (1, "Question 0?", "An answer of two lines."),
        (2, "Question 1?", "An answer of two lines."),
    ]
    made = docx.Document()
    made.add_heading("FAQ", 0)
    made.add_heading("Open?", 2)
    made.add_paragraph("At nine.")
    made.save(str(tmp_path / "a.docx"))
    assert rows(tmp_path / "a.docx") == [(2, "Open?", "At nine.")]


def test_the_bundled_kind_of_text_stays_as_it_was(tmp_path: Path) -> None:
    text = "Harbor Bank\n\n## Open?\nAt nine. See A: and B.\n"
    (row,) = read_file(written(tmp_path, "a.txt", text), "a.txt")
    assert isinstance(row, Conversation)
    assert row.messages[1]["content"] == "At nine. See A: and B."
