"""What was recorded of every family, and the page that is written from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.hardware import installed_versions
from pipeline.models.families import FAMILIES
from pipeline.models.families.unsupported import UNSUPPORTED
from pipeline.optimization.formats import FORMATS
from tools.family_table import importers
from tools.family_table.cells import ENGINES, HOPS, TRAINING

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "bench" / "results" / "families.json"
PAGE = ROOT / "docs" / "models.md"
LIBRARIES = ("megatron-core", "nemo_toolkit", "nvidia-modelopt", "torch", "transformers")
GROUPS = (
    ("Training", ("import", *TRAINING, "merge")),
    ("Formats and exported folders", (*FORMATS, "qnemo", "unified")),
    ("Engines", (*ENGINES, "served")),
)
# What a model must go through to be trained, quantized and served on a CPU.
MAIN = ("import", "lora", "merge", "fp8", "unified", "hf", "served")
_MACHINE = 7  # exit code of a runtime or hardware that this machine does not have

HEAD = """\
<!-- Written by `python -m tools.family_table`: change the records of families, not this page. -->

# Models

The pipeline takes decoder-only text models as Hugging Face folders with safetensors. The record of
a family (`pipeline/models/families/`) says which architectures it has, how its weights are named in
each library, and what it cannot do. Every stage asks the record. What a family cannot do is refused
before anything runs, in one line that says whose limit it is.

The tables below were made by running every cell on a tiny random model of two to four layers, on a
CPU in float32: {counts}.

- ✓: it ran, and its proofs passed. Logits and greedy tokens of `import` and `merge` equal those
  of transformers; the weights of an exported folder are those of the source within what rounding
  costs; the served answer equals that of transformers, token by token.
- A letter: it is refused, and the note below the tables gives the reason.

`sft`, `dora` and `lora` each include the merge of what was trained. A format includes its
calibration and its export. `qnemo` is the TensorRT-LLM checkpoint and `unified` ModelOpt's unified
HF checkpoint, both in FP8. `served` asks the engine `hf` a question through the server.
"""


def digest_of(family: str) -> str:
    """Of what a family's record says, and of the libraries that its hops use."""
    installed = installed_versions(set(LIBRARIES))
    versions = {name: installed.get(name, "").partition("+")[0] for name in LIBRARIES}
    content = f"{FAMILIES[family]!r} {json.dumps(versions, sort_keys=True)}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_record() -> dict[str, Any]:
    """{family: {"digest": ..., "cells": {hop: cell}}}"""
    return json.loads(RECORD.read_text()) if RECORD.is_file() else {}


def write_record(record: Mapping[str, Any]) -> None:
    """Write the record of known families in the order of the table."""
    known = {name: record[name] for name in FAMILIES if name in record}
    RECORD.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def render(record: Mapping[str, Any]) -> str:
    """The page of what was recorded."""
    notes = _Notes()
    tables = []
    for title, hops in GROUPS:
        rows = [f"| family | {' | '.join(f'`{hop}`' for hop in hops)} |"]
        rows.append("|---" * (len(hops) + 1) + "|")
        for name, entry in record.items():
            cells = (notes.mark(hop, entry["cells"].get(hop)) for hop in hops)
            rows.append(f"| {FAMILIES[name].title} | {' | '.join(cells)} |")
        tables.append(f"## {title}\n\n" + "\n".join(rows))
    families = ["| family | `architectures` | `model_type` |", "|---|---|---|"]
    for name in record:
        family = FAMILIES[name]
        architectures = ", ".join(f"`{known}`" for known in family.architectures)
        families.append(f"| {family.title} | {architectures} | `{family.model_type}` |")
    refused = ["| `architectures` | why | nearest |", "|---|---|---|"]
    for known in UNSUPPORTED:
        names = ", ".join(f"`{name}`" for name in known.architectures)
        refused.append(f"| {names} | {known.reason} | `{known.nearest}` |")
    parts = [
        HEAD.format(counts=_counts(record)),
        *tables,
        "### Notes\n\n" + notes.text(),
        "## Architectures\n\n" + "\n".join(families),
        f"## NeMo's importers\n\n{importers.counts()}\n\n{importers.table()}",
        "## Architectures that are refused\n\nThe refusal gives the reason and the nearest "
        "supported architecture.\n\n" + "\n".join(refused),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _counts(record: Mapping[str, Any]) -> str:
    cells = [(hop, entry["cells"].get(hop)) for entry in record.values() for hop in HOPS]
    filled = sum(cell is not None and "refusal" not in cell for _, cell in cells)
    machine = sum(cell is not None and cell.get("code") == _MACHINE for _, cell in cells)
    whole = sum(
        all("refusal" not in entry["cells"].get(hop, {"refusal": ""}) for hop in MAIN)
        for entry in record.values()
    )
    return (
        f"{len(record)} families, {len(cells)} cells, of which {filled} ran; {machine} need "
        f"hardware or a runtime that this machine does not have, and "
        f"{len(cells) - filled - machine} are refused. {whole} families go through import, LoRA, "
        "merge, FP8, unified HF and an engine"
    )


class _Notes:
    """Reasons, each with a letter, in the order in which the tables name them."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, hop: str, cell: Mapping[str, Any] | None) -> str:
        if cell is not None and "refusal" not in cell:
            return "✓"
        reason = "an earlier hop of the family is refused" if cell is None else _reason(hop, cell)
        number = len(self._letters)
        letter = chr(ord("a") + number) if number < 26 else f"a{chr(ord('a') + number - 26)}"
        return self._letters.setdefault(reason, letter)

    def text(self) -> str:
        return "\n".join(f"- **{letter}**: {reason}" for reason, letter in self._letters.items())


def _reason(hop: str, cell: Mapping[str, Any]) -> str:
    """The reason of a refusal, without the names of this run's folders and the advice of a user."""
    line = re.sub(r"^\w+: ", "", cell["refusal"])
    line = re.sub(r"\S*/artifacts/", "", line)
    if cell["code"] == _MACHINE:
        line = re.split(r": run this stage|\. Install it|; run ", line)[0]
        return f"`{hop}` needs what the machine of this table does not have: {line}"
    return line
