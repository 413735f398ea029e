"""Write docs/metrics.md from the table of metrics, and the condition's fields into docs/gate.md.

python -m tools.metric_table            write the pages
python -m tools.metric_table --check    exit with 1 if a committed page is stale
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.config.evaluate import Condition
from pipeline.evaluation.metrics import METRICS, Metric
from pipeline.orchestration.schema_words import type_in_words

ROOT = Path(__file__).resolve().parents[1]
PAGE, GATE = ROOT / "docs" / "metrics.md", ROOT / "docs" / "gate.md"
_FIELDS = re.compile(
    r"(?<=<!-- condition: written by `make docs` -->\n).*(?=<!-- /condition -->)", re.S
)
HEAD = """\
<!-- Written by `make docs`: change pipeline/evaluation/metrics.py, not this page. -->

# Metrics

`evaluate.metrics` names what is measured, and [the gate](gate.md) may name any of them. *Served*
metrics follow from the texts of answers alone, so that `stage=benchmark` and the champion rule have
them, too; the others need the model's probabilities. A metric that applies to some questions only
is the mean over these.

| name | unit | better | served | needs | meaning |
|---|---|---|---|---|---|
"""
TAIL = """
Words are runs of letters and digits without case; each Chinese or Japanese character is a word.
Figures have bootstrap intervals over the questions. A metric of your own is
[one function](evaluation.md#a-metric-of-your-own), and one for everybody is a record in
`pipeline/evaluation/metrics.py`.
"""


def page() -> str:
    """docs/metrics.md."""
    return HEAD + "".join(_row(metric) for metric in METRICS.values()) + TAIL


def _row(metric: Metric) -> str:
    unit = "%" if metric.format.endswith("%") else {"length": "words"}.get(metric.name, "")
    needs = ", ".join(f"`evaluate.{name}`" for name in metric.needs)
    if metric.name.startswith("judge"):
        needs = "[a judge](evaluation.md#a-judge)"
    better = "higher" if metric.higher_is_better else "lower"
    served = "yes" if metric.served else ""
    return f"| `{metric.name}` | {unit} | {better} | {served} | {needs} | {metric.meaning} |\n"


def gate_page(text: str) -> str:
    """docs/gate.md with the fields of a condition."""
    schema = Condition.model_json_schema()["properties"]
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in Condition.model_fields.items():
        default = "null" if field.default is None else field.default
        kind = _type(schema[name]).replace("|", "\\|")
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | `{default}` | {meaning} |")
    return _FIELDS.sub(lambda _: "\n".join(lines) + "\n", text)


def _type(schema: dict[str, Any]) -> str:
    kinds = [type_in_words(part, quote="`") for part in schema.get("anyOf", [schema])]
    return " or ".join(kind for kind in kinds if kind != "null")


def main() -> int:
    """Write the pages, or with --check compare them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    stale = 0
    for file, text in ((PAGE, page()), (GATE, gate_page(GATE.read_text()))):
        if file.is_file() and file.read_text() == text:
            continue
        if check:
            print(f"{file.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
            stale = 1
        else:
            file.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
