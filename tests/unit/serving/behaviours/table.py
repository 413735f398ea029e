"""Writes the table of cases into docs/api.md.

python -m tests.unit.serving.behaviours.table
"""

from pathlib import Path

from pipeline.core.paths import ROOT
from tests.unit.serving.behaviours.cases import SUBJECTS

PAGE = ROOT / "docs/api.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"


def table() -> str:
    """The table and a sentence about it, in Markdown."""
    every = [case for cases in SUBJECTS.values() for case in cases]
    alike = sum(case.alike for case in every)
    lines = [
        f"Of these {len(every)} behaviours, {alike} ({alike / len(every):.0%}) are as in vLLM or "
        "NIM; each of the others has its reason beside it.",
        "",
    ]
    for subject, cases in SUBJECTS.items():
        lines += [f"### {subject}", "", "| behaviour | vLLM | NIM | here | why it differs |"]
        lines.append("|---|---|---|---|---|")
        for case in cases:
            cells = [case.name, case.vllm, case.nim, case.ours, case.why]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page, with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(page: Path = PAGE) -> None:
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main()
