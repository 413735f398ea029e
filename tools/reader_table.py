"""Write docs/readers.md: what each reader makes of good and bad files, by reading them.

python -m tools.reader_table            write the page
python -m tools.reader_table --check    exit with 1 if the committed page is stale

Every message on the page is what the reader says: the files are written into a temporary folder,
and read. PDF and DOCX need the extra `documents`.
"""

import argparse
import csv
import gzip
import io
import json
import os
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.finetune import RowKind
from pipeline.core.errors import PipelineError
from pipeline.data.finding import find_files
from pipeline.data.readers import record
from pipeline.data.readers.table import READERS
from pipeline.data.reading import Options, read_file
from pipeline.data.rows import Conversation, Rejected

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "readers.md"
HEAD = """\
<!-- Written by `make docs`: change tools/reader_table.py, not this page. -->

# Readers of data files

What `stage=prepare` makes of files of each kind. Every line of this page was made by reading such a
file. A bad row is rejected alone, with its number; a file that cannot be used as a whole is refused
with exit code 3. `stage=prepare` names files without rows, and fails if more than
`prepare.max_reject_share` of all rows are rejected. See [Your own data](data.md).
"""
ROW_HEAD = """
## Rows, by their format

What the fields of a row mean is the same in every kind of file. See
[Your own data](data.md#formats).
"""
ROWS = [
    {"prompt": f"Question {number}, or “not”?", "completion": f"Answer {number}."}
    for number in range(3)
]
MOST = 4096  # bytes of a row, here: the bound of the readers is 16 MiB


@dataclass(frozen=True)
class Case:
    """A file. what: is wrong with it, or what is in it. content: its bytes, or what writes it."""

    reader: str
    what: str
    name: str
    content: bytes | Callable[[Path], object]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def cells(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)

    return write


def twice(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["prompt", "prompt", "completion"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=names), file)


def zstd(content: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def arrow(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        import pyarrow as pa

        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    return write


def saved(rows: list[dict[str, Any]]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        import pyarrow as pa

        folder.mkdir()
        table = pa.Table.from_pylist(rows)
        file = folder / "data-00000-of-00001.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": file.name}]}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")

    return write


def cut(write: Callable[[Path], object], share: float = 0.6) -> Callable[[Path], object]:
    def whole(file: Path) -> None:
        write(file)
        os.truncate(file, int(share * file.stat().st_size))

    return whole


def document(rows: list[tuple[str, str]]) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        import docx

        made = docx.Document()
        made.add_heading("FAQ", 0)
        for question, answer in rows:
            made.add_heading(question, 2)
            made.add_paragraph(answer)
        made.save(str(file))

    return write


def archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("a.txt", "no document")


ASKED = [("When do you open?", "At nine."), ("What does a wire cost?", "Five dollars.")]
FAQ = "FAQ\n\n" + "".join(f"## {q}\n{a}\n\n" for q, a in ASKED)
LETTERED = "FAQ\n\n" + "".join(f"Q: {q}\nA: {a}\n\n" for q, a in ASKED)
NUMBERED = "FAQ\n\n" + "".join(f"{i}. {q}\n{a}\n\n" for i, (q, a) in enumerate(ASKED, 1))
HTML = "<h1>FAQ</h1>\n" + "".join(f"<h2>{q}</h2>\n<p>{a}</p>\n" for q, a in ASKED)
LATIN = "café".encode("latin-1")
NO_ANSWER = [ROWS[0], {"prompt": "Question?"}]
LONG = [ROWS[0], {"prompt": "x" * MOST, "completion": "y"}]
ASCII = [{"prompt": "Question?", "completion": "Answer."}]
ODD = [{"prompt": 'He said "no",\nand left?', "completion": "Yes; he did."}]
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
TALK = [USER, ASSISTANT]
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
LISTS = {"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}
MIXED = [{"messages": TALK}, SHARED, *ROWS]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "r"}


@dataclass(frozen=True)
class RowCase:
    """A row. format: its heading on the page. kind: what the objective learns from."""

    format: str
    what: str
    row: Any
    kind: RowKind = "answers"


def row_cases() -> Iterator[RowCase]:
    """Rows of each format, and what is wrong with some."""
    openai = "OpenAI messages"
    yield RowCase(openai, "question and answer", {"messages": TALK})
    yield RowCase(openai, "a system turn", {"messages": [SYSTEM, *TALK]})
    yield RowCase(openai, "tools, a call and its result",
                  {"tools": [TOOL], "messages": [USER, CALLING, RESULT, ASSISTANT]})  # fmt: skip
    yield RowCase(openai, "an answer of weight 0",
                  {"messages": [USER, {**ASSISTANT, "weight": 0}, *TALK]})  # fmt: skip
    yield RowCase(openai, "a greeting first", {"messages": [ASSISTANT, *TALK]})
    yield RowCase(openai, "two user turns in a row", {"messages": [USER, *TALK]})
    yield RowCase(openai, "the last turn is the user's", {"messages": [*TALK, USER]})
    yield RowCase(openai, "nobody asks", {"messages": [ASSISTANT]})
    yield RowCase(openai, "another role", {"messages": [{**USER, "role": "critic"}, ASSISTANT]})
    image = [{"type": "image_url", "image_url": {"url": "u"}}]
    yield RowCase(openai, "an image", {"messages": [{**USER, "content": image}, ASSISTANT]})
    yield RowCase(openai, "a call without its result", {"messages": [USER, CALLING, ASSISTANT]})
    yield RowCase(openai, "a result without a call", {"messages": [USER, RESULT, ASSISTANT]})
    yield RowCase(openai, "a field of no effect", {"messages": TALK, "reward": 1})
    yield RowCase(openai, "an empty list", {"messages": []})
    yield RowCase(
        openai, "a request of a batch file", {"custom_id": "1", "body": {"messages": TALK}}
    )
    yield RowCase(openai, "another name", {"dialogue": TALK})
    share = "ShareGPT, NeMo chat"
    turns = SHARED["conversations"]
    yield RowCase(share, "human and gpt", SHARED)
    yield RowCase(share, "function_call and observation", {"conversations": [
        turns[0], {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "r"}, turns[1]]})  # fmt: skip
    yield RowCase(share, "mask and system of NeMo", {"mask": "User", "system": "s", **SHARED})
    yield RowCase(share, "a list for each field", LISTS)
    yield RowCase(share, "another mask", {"mask": "Assistant", **SHARED})
    yield RowCase(share, "a call that is no JSON", {"conversations": [
        turns[0], {"from": "function_call", "value": "f()"}]})  # fmt: skip
    alpaca = "Alpaca, Dolly"
    asked = {"instruction": "a", "output": "b"}
    yield RowCase(alpaca, "with input", {**asked, "input": "i"})
    yield RowCase(alpaca, "with history", {**asked, "input": "", "history": [["x", "y"]]})
    yield RowCase(alpaca, "with context", {"instruction": "a", "context": "c", "response": "b"})
    yield RowCase(alpaca, "with the text of both", {**asked, "text": "a b"})
    yield RowCase(alpaca, "history that is no list of pairs", {**asked, "history": ["x"]})
    plain = "Prompt and completion, question and answer"
    yield RowCase(plain, "texts", {"prompt": "a", "completion": "b"})
    yield RowCase(plain, "lists of turns", {"prompt": [USER], "completion": [ASSISTANT]})
    yield RowCase(plain, "question and answer", {"question": "a", "answer": "b"})
    yield RowCase(plain, "input and output", {"input": "a", "output": "b"})
    yield RowCase(plain, "no completion", {"prompt": "a"})
    yield RowCase(plain, "an answer that is a number", {"question": "a", "answer": 4})
    yield RowCase(
        plain, "context beside the question", {"question": "a", "answer": "b", "context": "c"}
    )
    text = "Plain text"
    yield RowCase(text, "text", {"text": "a b c"})
    yield RowCase(text, "nothing in it", {"text": " "})
    yield RowCase(text, "half a surrogate pair", {"text": "\ud800"})
    pairs = "Pairs of answers (`finetune.objective=dpo`, `orpo`, `simpo`)"
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    whole = {"chosen": TALK, "rejected": [USER, {**ASSISTANT, "content": "c"}]}
    preferred = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT],
                 "non_preferred_output": [{**ASSISTANT, "content": "c"}]}  # fmt: skip
    yield RowCase(pairs, "prompt, chosen and rejected", pair, "pairs")
    yield RowCase(pairs, "whole conversations", whole, "pairs")
    yield RowCase(pairs, "OpenAI's preferred_output", preferred, "pairs")
    yield RowCase(pairs, "equal sides", {**pair, "rejected": "b"}, "pairs")
    yield RowCase(pairs, "one side", {"prompt": "a", "chosen": "b"}, "pairs")
    yield RowCase(pairs, "an answer alone", {"prompt": "a", "completion": "b"}, "pairs")
    yield RowCase(pairs, "a pair with `finetune.objective=sft`", pair)
    labels = "Answers with labels (`finetune.objective=kto`)"
    labelled = {"prompt": "a", "completion": "b", "label": False}
    yield RowCase(labels, "a bad answer", labelled, "labels")
    yield RowCase(labels, "no label", {"prompt": "a", "completion": "b"}, "labels")
    yield RowCase(labels, "a pair", pair, "labels")
    yield RowCase(labels, "a bad answer with `finetune.objective=sft`", labelled)


def pages(texts: list[list[tuple[str, bool]]]) -> bytes:
    from tests.unit.data.pdf_files import pdf

    return pdf(
        [[(700 - 20 * i, 11, bold, text) for i, (text, bold) in enumerate(page)] for page in texts]
    )


def cases() -> Iterator[Case]:
    """The files, by reader."""
    good = lines(ROWS)
    yield Case("json_lines", "good", "a.jsonl", good)
    yield Case("json_lines", "formats mixed", "a.jsonl", lines(MIXED))
    yield Case("json_lines", "gzip", "a.jsonl.gz", gzip.compress(good))
    yield Case("json_lines", "zstd, in two frames", "a.jsonl.zst", 2 * zstd(good))
    yield Case("json_lines", "lines of Windows", "a.jsonl", good.replace(b"\n", b"\r\n"))
    yield Case("json_lines", "empty", "a.jsonl", b"")
    yield Case("json_lines", "cut", "a.jsonl", good[:-20])
    yield Case("json_lines", "gzip, cut", "a.jsonl.gz", gzip.compress(good)[:-12])
    yield Case("json_lines", "a line in Latin-1", "a.jsonl", good + b'{"text": "' + LATIN + b'"}\n')
    yield Case("json_lines", "UTF-16", "a.jsonl", good.decode().encode("utf-16"))
    yield Case(
        "json_lines", "UTF-16 without a mark", "a.jsonl", lines(ASCII).decode().encode("utf-16-le")
    )
    yield Case("json_lines", "lines end with \\r alone", "a.jsonl", good.replace(b"\n", b"\r"))
    yield Case(
        "json_lines", "a comma too many, and NaN", "a.jsonl", b'{"text": "a",}\n{"text": NaN}\n'
    )
    yield Case("json_lines", "a huge line", "a.jsonl", lines(LONG))
    yield Case("json_lines", "a field missing", "a.jsonl", lines(NO_ANSWER))
    yield Case("json_lines", "fields of no format", "a.jsonl", lines([*ROWS, {"query": "a"}]))
    yield Case("json", "good", "a.json", json.dumps(ROWS, ensure_ascii=False).encode())
    yield Case("json", "lines of objects", "a.json", good)
    yield Case("json", "empty", "a.json", b"")
    yield Case("json", "cut", "a.json", json.dumps(ROWS).encode()[:-30])
    yield Case("json", "UTF-16", "a.json", json.dumps(ROWS).encode("utf-16"))
    yield Case("json", "a huge element", "a.json", json.dumps(LONG).encode())
    yield Case("json", "an object around the rows", "a.json", json.dumps({"data": ROWS}).encode())
    yield Case("csv", "good", "a.csv", cells(ROWS))
    yield Case("csv", "semicolons", "a.csv", cells(ROWS, ";"))
    yield Case("csv", "tabs", "a.tsv", cells(ROWS, "\t"))
    yield Case("csv", "quotes and line breaks in cells", "a.csv", cells(ODD))
    yield Case("csv", "an index without a name", "a.csv", b",prompt,completion\n0,a,b\n1,c,d\n")
    yield Case("csv", "turns as JSON", "a.csv", cells([{"messages": json.dumps(TALK)}]))
    yield Case("csv", "turns in Python's notation", "a.csv", cells([{"messages": str(TALK)}]))
    yield Case("csv", "empty", "a.csv", b"")
    yield Case("csv", "a quote without an end", "a.csv", b'prompt,completion\n"a,b\n')
    yield Case("csv", "a record in Latin-1", "a.csv", cells(ROWS) + LATIN + b",b\n")
    yield Case("csv", "UTF-16", "a.csv", cells(ROWS).decode().encode("utf-16"))
    yield Case("csv", "a cell too many", "a.csv", cells(ROWS) + b"a,b,c\n")
    yield Case("csv", "a column missing", "a.csv", b"prompt,answer\na,b\n")
    yield Case("csv", "a column twice", "a.csv", b"prompt,prompt\na,b\n")
    yield Case("parquet", "good", "a.parquet", parquet(ROWS))
    yield Case("parquet", "ShareGPT in nested structs", "a.parquet", parquet([SHARED]))
    yield Case("parquet", "a list for each field of a turn", "a.parquet", parquet([LISTS]))
    yield Case("parquet", "empty", "a.parquet", b"")
    yield Case("parquet", "cut", "a.parquet", cut(parquet(ROWS)))
    yield Case("parquet", "JSON lines", "a.parquet", good)
    yield Case("parquet", "a huge row", "a.parquet", parquet(LONG))
    yield Case("parquet", "a column missing", "a.parquet", parquet([{"prompt": "a", "label": 3}]))
    yield Case("parquet", "a column twice", "a.parquet", twice)
    yield Case("parquet", "compressed as a whole", "a.parquet.gz", gzip.compress(b"PAR1"))
    yield Case("arrow", "good", "a.arrow", arrow(ROWS))
    yield Case("arrow", "a folder that datasets saved", "saved", saved(ROWS))
    yield Case("arrow", "empty", "a.arrow", b"")
    yield Case("arrow", "cut", "a.arrow", cut(arrow(ROWS)))
    yield Case("arrow", "JSON lines", "a.arrow", good)
    yield Case("markdown", "good", "a.md", FAQ.encode())
    yield Case("markdown", "a heading without a space", "a.md", b"T\n\n##When?\nAt nine.\n")
    yield Case("markdown", "text outside a section", "a.md", b"# T\n\nIntro.\n\n## When?\nNow.\n")
    yield Case("text", "headings", "a.txt", FAQ.encode())
    yield Case("text", "Q: and A:", "a.txt", LETTERED.encode())
    yield Case("text", "numbered", "a.txt", NUMBERED.encode())
    yield Case("text", "empty", "a.txt", b"")
    yield Case("text", "no questions", "a.txt", b"Handbook\n\nWe open at nine.\n")
    yield Case("text", "a question without an answer", "a.txt", b"T\n\nQ: A?\n\nQ: B?\nA: Yes.\n")
    yield Case("text", "a line in Latin-1", "a.txt", b"T\n\n## When?\n" + LATIN + b"\n")
    yield Case("html", "good", "a.html", HTML.encode())
    yield Case("html", "a list of terms", "a.html", b"<dl><dt>When?<dd>At nine.<dt>Where?<dd>Here.")
    yield Case("html", "empty", "a.html", b"")
    yield Case("html", "Latin-1 that is not declared", "a.html", b"<p>" + LATIN + b"</p>")
    yield Case("html", "nested 3,000 deep", "a.html", b"<div>" * 3000 + b"text")
    yield Case("html", "no questions", "a.html", b"<h1>Handbook</h1><p>We open at nine.</p>")
    bold = [[(q, True), (a, False)] for q, a in ASKED]
    yield Case("pdf", "good", "a.pdf", pages(bold))
    yield Case("pdf", "empty", "a.pdf", b"")
    yield Case("pdf", "cut", "a.pdf", pages(bold)[:900])
    yield Case("pdf", "images alone", "a.pdf", pages([[]]))
    yield Case("pdf", "no PDF", "a.pdf", b"hello")
    yield Case("docx", "good", "a.docx", document(ASKED))
    yield Case("docx", "empty", "a.docx", b"")
    yield Case("docx", "cut", "a.docx", cut(document(ASKED)))
    yield Case("docx", "encrypted, or DOC", "a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    yield Case("docx", "another archive", "a.docx", archive)
    for name in ("a.xlsx", "a.pkl", "a.zip", "a.yaml", "a.doc", "a.dat"):
        yield Case("", "", name, b"x")


def said_of_row(case: RowCase) -> list[str]:
    """What is made of a row, as cells: the turns, and what is refused."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "a.jsonl"
        file.write_text(json.dumps(case.row) + "\n")
        (row,) = read_file(file, file.name, Options(kind=case.kind))
    if isinstance(row, Rejected):
        return ["", _cell(f"{row.reason}: {row.detail}")]
    turns = [
        f"{turn['role']}{' (context)' if turn.get('weight') == 0 else ''}" for turn in row.messages
    ]
    both = " twice: the better and the worse answer" if row.rejected else ""
    label = "" if row.label is None else f", a {'good' if row.label else 'bad'} answer"
    return [", ".join(turns) + both + label, ""]


def said(case: Case) -> list[str]:
    """What a reader says of a file, as cells: what is accepted, and what is refused."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / case.name
        if isinstance(case.content, bytes):
            file.write_bytes(case.content)
        else:
            case.content(file)
        try:
            (found,) = find_files(Path(place), (case.name,), "data.train")
            rows = list(read_file(found, case.name))
        except PipelineError as error:
            message = str(error).replace(f"{place}/", "")
            return ["", _cell(message)]
    kept = [row for row in rows if isinstance(row, Conversation)]
    formats = Counter(row.format for row in kept)
    accepted = ", ".join(f"{count} × `{name}`" for name, count in formats.items())
    bad = [
        f"`{r.file}:{r.line}` {r.reason}" + (f": {r.detail}" if r.detail else "")
        for r in rows
        if isinstance(r, Rejected)
    ]
    return [accepted or "no rows", _cell("; ".join(bad))]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    """docs/readers.md."""
    bound, record.MAX_ROW_BYTES = record.MAX_ROW_BYTES, MOST
    try:
        found = [(case, said(case)) for case in cases()]
    finally:
        record.MAX_ROW_BYTES = bound
    parts = [HEAD]
    for name, reader in READERS.items():
        suffixes = ", ".join(f"`{suffix}`" for suffix in reader.suffixes)
        more = ", also with `.gz` or `.zst` behind it" if reader.compressed else ""
        title = reader.title[0].upper() + reader.title[1:]
        parts.append(f"\n## {title}\n\nFiles that end in {suffixes}{more}.\n\n")
        parts.append("| file | rows that are read | refused, and the message |\n|---|---|---|\n")
        own = [(case, cells) for case, cells in found if case.reader == name]
        parts += [f"| {case.what} | {' | '.join(cells)} |\n" for case, cells in own]
    parts.append(ROW_HEAD)
    rows = list(row_cases())
    for name in dict.fromkeys(case.format for case in rows):
        parts.append(f"\n### {name}\n\n| row | turns | refused, and the message |\n|---|---|---|\n")
        parts += [
            f"| {case.what} | {' | '.join(said_of_row(case))} |\n"
            for case in rows
            if case.format == name
        ]
    parts.append("\n## Other files\n\n| file | the message |\n|---|---|\n")
    parts += [f"| `{case.name}` | {cells[1]} |\n" for case, cells in found if not case.reader]
    bounded = f"over {MOST / 2**20:.0f} MiB"
    return "".join(parts).replace(bounded, f"over {bound // 2**20} MiB")


def main() -> int:
    """Write the page, or with --check compare it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    text = page()
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    if parser.parse_args().check:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
