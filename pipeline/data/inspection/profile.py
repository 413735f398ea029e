"""The figures of stage=inspect: a tree that is ready for JSON, and the same for the same rows."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.console import progress
from pipeline.data.dataset import Row
from pipeline.data.inspection.languages import language_of
from pipeline.data.preparation.decisions import Decided
from pipeline.data.preparation.statistics import (
    ADVICE,
    problem_of,
    statistics_of,
    untrained_of,
)
from pipeline.data.row_filter import EXACT, LEAK, NEAR, Kept
from pipeline.data.rows import Rejected
from pipeline.models.architecture import Shape
from pipeline.models.chat.messages import PLAIN, THOUGHT_FIELDS
from pipeline.models.chat.renderer import Chat

EXAMPLES = 10  # rejected rows of each reason, and rows of each kind of finding
MOST_TAGS, MOST_TURNS = 30, 12  # that are listed one by one
UNKNOWN = "undetermined"
# Reasons that compare a row with another one; all others are of the row itself.
COMPARED = {EXACT: "exact duplicates", NEAR: "near duplicates", LEAK: "leaks of test questions"}


def profile(config: Config, decided: Decided, chat: Chat, shape: Shape) -> dict[str, Any]:
    """Everything that the page and the terminal show, but for samples of rows.

    Raises:
        DataError: a weight file's header is damaged.
    """
    rows = decided.rows
    statistics = statistics_of(decided, chat)
    return {
        "model": config.model.name,
        "problem": problem_of(config, statistics, decided, "the rejected rows"),
        **statistics,
        "files": _files(statistics["files"], rows.kept),
        "turns": _turns(rows.kept),
        "shapes": _shapes(rows.kept),
        "languages": _languages(rows.kept),
        "tags": _tags(rows.kept),
        "untrained_tokens": untrained_of(rows.kept, shape, chat),
        "examples": _examples(rows.rejected),
    }


def _files(
    counts: Mapping[str, Mapping[str, int]], kept: Iterable[Kept]
) -> dict[str, dict[str, int]]:
    """The counts of each file, with its tokens."""
    tokens = Counter[str]()
    for row in kept:
        tokens[row.file] += sum(len(ids) for ids, _ in row.sides)
    return {name: {**found, "tokens": tokens[name]} for name, found in counts.items()}


def _turns(kept: Iterable[Kept]) -> dict[str, int]:
    """Rows by their number of turns; a system turn is none."""
    found = Counter(sum(message["role"] != "system" for message in row.messages) for row in kept)
    named = {str(turns): found[turns] for turns in sorted(found) if turns < MOST_TURNS}
    if more := sum(count for turns, count in found.items() if turns >= MOST_TURNS):
        named[f"{MOST_TURNS} or more"] = more
    return named


_SHAPES: Mapping[str, Callable[[Row], bool]] = {
    "plain text": lambda row: row.messages[0]["role"] == PLAIN,
    "one question and answer": lambda row: _asked(row) == 1,
    "several questions": lambda row: _asked(row) > 1,
    "with a system turn": lambda row: row.messages[0]["role"] == "system",
    "with tools": lambda row: bool(row.tools),
    "with calls of tools": lambda row: any(m.get("tool_calls") for m in row.messages),
    "with thoughts": lambda row: any(m.get(name) for m in row.messages for name in THOUGHT_FIELDS),
    "with answers that are context (weight 0)": lambda row: any(
        m["role"] == "assistant" and not m.get("weight", 1) for m in row.messages
    ),
    "pairs of a better and a worse answer": lambda row: row.rejected is not None,
    "answers with a good or bad label": lambda row: row.label is not None,
}


def _asked(row: Row) -> int:
    return sum(message["role"] == "user" for message in row.messages)


def _shapes(kept: Sequence[Kept]) -> dict[str, int]:
    """What rows are made of, with the number of rows; those that occur."""
    found: Counter[str] = Counter()
    for row in map(Kept.unpack, kept):
        found.update(name for name, holds in _SHAPES.items() if holds(row))
    return {name: found[name] for name in _SHAPES if found[name]}


def _languages(kept: Sequence[Kept]) -> list[dict[str, Any]]:
    """By language of the text: the rows, and how many of them name it, or another one."""
    rows, named, others = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    with progress() as bar:
        task = bar.add_task("languages", total=len(kept))
        for row in kept:
            language = language_of(_said(row)) or UNKNOWN
            rows[language] += 1
            if row.tags.language is not None:
                # "en-US" and "en_US" name "en".
                same = row.tags.language.lower().replace("_", "-").split("-")[0] == language
                (named if same else others[language])[language if same else row.tags.language] += 1
            bar.advance(task)
    return [
        {
            "language": language,
            "rows": count,
            "share": round(count / len(kept), 6),
            "named_so": named[language],
            "named_otherwise": dict(others[language].most_common(EXAMPLES)),
        }
        for language, count in rows.most_common()
    ]


def _said(row: Kept) -> str:
    """The text of a row without its instructions, which may be in another language."""
    return "\n".join(str(m["content"]) for m in row.messages if m["role"] != "system")


def _tags(kept: Iterable[Kept]) -> list[dict[str, Any]]:
    found = Counter(name for row in kept for name in row.tags.names)
    return [{"tag": tag, "rows": count} for tag, count in found.most_common(MOST_TAGS)]


def _examples(rejected: Iterable[Rejected]) -> dict[str, dict[str, Any]]:
    """By reason, in the order of frequency: the number of rows, advice, and the first rows."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    counts = Counter[str]()
    for row in rejected:
        counts[row.reason] += 1
        if len(first := rows[row.reason]) < EXAMPLES:
            place = f"{row.file}:{row.line}"
            first.append({"place": place, "detail": row.detail, "row": row.excerpt})
    return {
        reason: {"rows": count, "advice": ADVICE.get(reason, ""), "first": rows[reason]}
        for reason, count in counts.most_common()
    }
