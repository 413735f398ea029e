"""Figures of the rows that were decided, ready for JSON and the same for the same rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.data import samples
from pipeline.data.dataset import SPLITS, Row
from pipeline.data.preference_rows import NO_LABEL, NO_PAIR
from pipeline.data.preparation.decisions import Decided
from pipeline.data.row_filter import LEAK, NEAR, Kept
from pipeline.data.row_formats import PAIRED, UNUSED
from pipeline.data.rows import Rejected
from pipeline.models.architecture import Shape
from pipeline.models.chat.renderer import Chat
from pipeline.models.output_rows import untrained_tokens

MAX_CONFLICTS = 100  # most conflicts that are listed
MAX_NAMES = 10  # most fields that a message lists
MAX_UNTRAINED = 100  # most untrained tokens that are listed
PERCENTILES = (50, 95, 99)
# Settings that decide about a reason for which rows are rejected.
ADVICE = {
    UNUSED: "data.ignore_fields=[NAME] leaves a field out on purpose",
    LEAK: "prepare.leak_threshold decides what counts as the same question",
    PAIRED: "finetune.objective=dpo, orpo or simpo learns from pairs",
    NO_PAIR: "finetune.objective=sft trains on one answer a row",
    NO_LABEL: "finetune.objective=sft trains on good answers without a label",
    NEAR: "prepare.near_duplicate_threshold decides what counts as a near duplicate",
    "too long": "prepare.max_length is the most tokens of a row",
}


def statistics_of(decided: Decided, chat: Chat) -> dict[str, Any]:
    """Counts and lengths."""
    rows, epoch = decided.rows, decided.epoch
    kept = Counter(row.file for row in rows.kept)
    rejected = Counter(row.file for row in rows.rejected)
    read = kept + rejected
    found = {
        "rows": {"read": read.total(), "kept": kept.total(), "rejected": rejected.total()},
        "rejected": dict(Counter(row.reason for row in rows.rejected).most_common()),
        "rejected_fields": _fields(rows.rejected),
        "formats": {name: dict(found.most_common()) for name, found in rows.formats.items()},
        "left_out_fields": dict(rows.left_out.most_common()),
        "files": {
            name: {"read": read[name], "kept": kept[name], "rejected": rejected[name]}
            for name in decided.files
        },
        "splits": {
            split: _describe([row for row in epoch if row.split == split]) for split in SPLITS
        },
        "histogram": samples.histogram([len(ids) for row in rows.kept for ids, _ in row.sides]),
        "conflicts": len(rows.conflicts),
        "first_conflicts": [asdict(conflict) for conflict in rows.conflicts[:MAX_CONFLICTS]],
        "template_prints_the_date": chat.template.is_dated,
    }
    if decided.mixture.weights:
        found["mixture"] = decided.mixture.statistics(rows.kept)
    return found


def _fields(rejected: Iterable[Rejected]) -> dict[str, dict[str, int]]:
    """By reason, the fields of the data that are the reason, with the number of rows."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rejected:
        if row.field is not None:
            found[row.reason][row.field] += 1
    return {reason: dict(fields.most_common()) for reason, fields in found.items()}


def fields_in_words(fields: Mapping[str, int]) -> str:
    """Fields with their numbers of rows, the most common ones."""
    shown = [f"{name} ({count})" for name, count in list(fields.items())[:MAX_NAMES]]
    more = len(fields) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def reasons_in_words(rejected: Mapping[str, int], fields: Mapping[str, Mapping[str, int]]) -> str:
    """`3 × unused field: history (2), chosen (1); 1 × bad JSON`."""
    return "; ".join(
        f"{count} × {reason}" + (f": {fields_in_words(fields[reason])}" if reason in fields else "")
        for reason, count in rejected.items()
    )


def _describe(rows: Sequence[Kept]) -> dict[str, float]:
    """Rows and tokens of a split; lengths are tokens per conversation (nearest-rank percentiles).

    A pair has two conversations.
    """
    sides = [side for row in rows for side in row.sides]
    lengths = sorted(len(ids) for ids, _ in sides)
    tokens, trained = sum(lengths), sum(sum(mask) for _, mask in sides)
    figures: dict[str, float] = {"rows": len(rows), "tokens": tokens, "trained_tokens": trained}
    figures["trained_share"] = round(trained / max(1, tokens), 6)
    if lengths:
        ranks = {p: -(-p * len(lengths) // 100) - 1 for p in PERCENTILES}
        figures |= {f"length_p{p}": lengths[rank] for p, rank in ranks.items()}
        figures["length_max"] = lengths[-1]
    if any(row.label is not None for row in rows):
        figures["desirable"] = sum(bool(row.label) for row in rows)
    return figures


def problem_of(config: Config, statistics: Mapping[str, Any], decided: Decided, seen: str) -> str:
    """Why the rows make no dataset; empty if they do.

    seen: where the rejected rows can be seen, as "OUT/rejected.jsonl".
    """
    limit, recorded = config.prepare.max_reject_share, config.data.folder / config.data.recorded

    def counts(file: str) -> bool:
        # Users repeat themselves: duplicates among recorded rows do not mean that a file is wrong.
        return Path(file).parent != recorded

    refused = [row for row in decided.rows.rejected if counts(row.file)]
    read = sum(rows["read"] for file, rows in statistics["files"].items() if counts(file))
    if len(refused) > limit * read:
        common = Counter(row.reason for row in refused).most_common(3)
        reasons = reasons_in_words(dict(common), _fields(refused))
        worst = Counter(row.file for row in refused).most_common(1)[0]
        return (
            f"{len(refused)} of {read} rows were rejected, more than "
            f"prepare.max_reject_share={limit:g} allows ({reasons}; most in {worst[0]}): "
            + "".join(f"{ADVICE[reason]}; " for reason, _ in common if reason in ADVICE)
            + f"see {seen}, then correct the data or raise the share"
        )
    for field, column in config.data.columns.items():
        if field not in decided.rows.mapped and decided.rows.kept:
            return (
                f"data.columns.{field}={column} has no effect: no row that can be used has a "
                f"column {column}; correct its name, or leave the setting out"
            )
    tests = "data.test" if config.data.test else "data.test_share"
    for split, setting in (("train", "data.train"), ("test", tests)):
        if not statistics["splits"][split]["rows"]:
            where = f"see {seen} and {setting}"
            if not decided.rows.rejected:
                where = f"the files of {setting} have no rows, add some or name other files"
            return f"no row is left for the {split} split: {where}"
    return ""


def untrained_of(kept: Sequence[Kept], shape: Shape, chat: Chat) -> dict[str, Any]:
    """Tokens of the training rows' answers that the model was never trained on: how many, and the
    most frequent ones with how often they occur."""
    counts: Counter[int] = Counter()
    for row in kept:
        if row.split == "train":
            counts.update(compress(row.ids, row.mask))
    found = untrained_tokens(chat.folder, shape, counts)
    first = [
        {"id": t, "text": chat.decode([t], control_tokens=True), "times": counts[t]}
        for t in found[:MAX_UNTRAINED]
    ]
    return {"count": len(found), "first": first}


def choose_samples(kept: Sequence[Kept], count: int) -> list[Row]:
    """Training rows, spread evenly over the files."""
    training = [row for row in kept if row.split == "train"]
    count = min(count, len(training))
    return [training[i * len(training) // count].unpack() for i in range(count)]
