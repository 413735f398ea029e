"""The folder of a synthesis: rows for data=files, what was not used, and how it all was made.

rows.jsonl              conversations, each with its source and how it was made in `metadata`
manifest.json           documents, prompt, model, settings, counts, what was used of the budget
unused/pairs.jsonl      pairs that are not used, each with the reason
unused/failures.jsonl   chunks without an answer, each with the reason
answers/ledger.jsonl    everything that was asked and answered, from which a run resumes
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, ResourceError
from pipeline.data.synthesis.selection import Judged

ROWS, MANIFEST = "rows.jsonl", "manifest.json"
PAIRS, FAILURES, LEDGER = "unused/pairs.jsonl", "unused/failures.jsonl", "answers/ledger.jsonl"
KIND = "synthesized rows"  # in the manifest, by which a folder is known again


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ConfigError: says what to name instead.
    """
    try:
        there = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ConfigError(
            f"synthesize.to={folder} is no folder ({error.strerror}): name a new one"
        ) from error
    ours = {Path(name).parts[0] for name in (ROWS, MANIFEST, PAIRS, FAILURES, LEDGER)}
    if others := [name for name in there if name not in ours and not name.startswith(".")]:
        raise ConfigError(
            f"synthesize.to={folder} holds other files ({', '.join(others[:3])}): name a new folder"
        )
    if there and not any((folder / name).is_file() for name in (MANIFEST, LEDGER)):
        raise ConfigError(
            f"synthesize.to={folder} holds files that stage=synthesize did not write: name a new "
            "folder"
        )


def row_of(judged: Judged, made: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the form of OpenAI's messages. made: how, the same for all rows of a chunk."""
    source = f"{judged.chunk.file}:{judged.place.line}"
    if judged.place.page is not None:
        source = f"{judged.chunk.file}:{judged.place.page}:{judged.place.line}"
    return {
        "messages": [
            {"role": "user", "content": judged.pair.question},
            {"role": "assistant", "content": judged.pair.answer},
        ],
        "source": source,
        "metadata": {
            "headings": list(judged.chunk.headings),
            "page": judged.place.page,
            "line": judged.place.line,
            "support": judged.support,
            **made,
        },
    }


def unused(judged: Judged, made: Mapping[str, Any]) -> dict[str, Any]:
    """A pair that is not used."""
    return {"reason": judged.reason, "detail": judged.detail, **row_of(judged, made)}


def write(folder: Path, files: Mapping[str, Iterable[Mapping[str, Any]]], manifest: Any) -> None:
    """Write files of JSON lines, each whole or not at all, and the manifest last.

    Raises:
        ResourceError: one cannot be written.
    """
    try:
        for name, rows in files.items():
            lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            _write(folder / name, "".join(lines))
        _write(folder / MANIFEST, f"{json.dumps(manifest, indent=1, ensure_ascii=False)}\n")
    except OSError as error:
        raise ResourceError(
            f"synthesize.to={folder} cannot be written ({error.strerror}): free disk space, or "
            "name another folder"
        ) from error


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(file)
