"""Conversations and texts → dataset: checked, cleaned and rendered with the model's template.

Every row is kept, or written to rejected.jsonl with the reason; the counts add up. The same files,
settings and seed give the same bytes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.config.finetune import OBJECTIVES, RowKind
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import DataError
from pipeline.core.stage import Stage
from pipeline.data import samples
from pipeline.data.dataset import SPLITS, Row, write_split
from pipeline.data.finding import find_files, size_of
from pipeline.data.mixture import Mixture
from pipeline.data.preference_rows import NO_LABEL, NO_PAIR
from pipeline.data.reading import Options, read_file
from pipeline.data.row_filter import LEAK, NEAR, Kept, RowFilter
from pipeline.data.row_formats import PAIRED, UNUSED
from pipeline.data.rows import Conversation, Rejected
from pipeline.data.settings_checks import check_prepare
from pipeline.models.architecture import Shape
from pipeline.models.chat.renderer import Chat
from pipeline.models.checks import check_folder
from pipeline.models.output_rows import untrained_tokens

STAGE = Stage(
    version=5,
    libraries=("tokenizers", "jinja2", "pyarrow", "rapidfuzz", "numpy", "markdown-it-py"),
)


MAX_CONFLICTS = 100  # most conflicts that statistics.json lists
MAX_NAMES = 10  # most fields that a message lists
MAX_UNTRAINED = 100  # most untrained tokens that statistics.json lists
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


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Read config.data, reject unusable rows, split, render and write the dataset into `out`.

    Raises:
        ConfigError: prepare.max_length is over the model's context, or a glob is not valid.
        DataError: a file or the model folder cannot be used, or too many rows were rejected.
    """
    shape = check_folder(config.model.path)
    check_prepare(config, shape)
    chat = Chat.load(config.model.path)
    rows = RowFilter(config.prepare, config.seed, chat, lambda: _serves_tools(chat))
    tests, training = _find(config.data)
    names = {file: _name(file) for file in training}
    mixture = Mixture(config.data.mixture, config.data.folder, names)
    kind = OBJECTIVES[config.finetune.objective].rows
    for row, is_test in _read(tests, training, config.data.ignore_fields, kind):
        rows.add(row, is_test=is_test)
    with progress() as bar:
        task = bar.add_task("comparing rows", total=len(rows))
        rows.finish(lambda compared: bar.advance(task, compared))
    _write_rejected(rows.rejected, out / "rejected.jsonl")
    epoch = list(mixture.epoch(rows.kept))
    statistics = _statistics(rows, epoch, chat, [_name(file) for file in tests + training])
    if config.data.mixture:
        statistics["mixture"] = mixture.statistics(rows.kept)
    _show_unused(statistics, config.data.ignore_fields)
    _refuse_if_bad(config, statistics, rows.rejected, out)
    statistics["untrained_tokens"] = _untrained(rows.kept, shape, chat)
    for split in SPLITS:
        write_split(out, split, (row.unpack() for row in epoch if row.split == split), kind)
    chat.save(out / "tokenizer")
    (out / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    shown = _choose_samples(rows.kept, config.prepare.samples)
    page = samples.page(chat, shown, statistics["histogram"])
    (out / "samples.html").write_text(page, encoding="utf-8")
    _show(chat, shown, statistics, kind)
    return Outcome("dataset", _metrics(statistics), proof={"chat_sha256": chat.sha256})


def _serves_tools(chat: Chat) -> bool:
    """Whether the server of this model takes tools and can parse calls of them."""
    from pipeline.serving.parsers.detection import answer_format

    answers = answer_format(chat)
    return answers.accepts_tools and answers.tools is not None


def _find(data: DataConfig) -> tuple[list[Path], list[Path]]:
    """The test files and the training files.

    A glob for training files may match test files; those stay test files.
    """
    tests = find_files(data.folder, data.test, "data.test")
    training = find_files(data.folder, data.train, "data.train")
    if data.sources:
        training += find_files(data.folder, data.sources, "data.sources")
    training += sorted((data.folder / data.recorded).glob("*.jsonl"))
    return tests, [file for file in dict.fromkeys(training) if file not in tests]


def _name(file: Path) -> str:
    """A file's path as text, with question marks for bytes that are not UTF-8."""
    return str(file).encode(errors="replace").decode()


def _read(
    tests: Sequence[Path], training: Sequence[Path], ignored: Sequence[str], kind: RowKind
) -> Iterator[tuple[Conversation | Rejected, bool]]:
    """Every row of every file, with whether it is a test row; test rows first."""
    files = [*tests, *training]
    size = sum(map(size_of, files))
    with progress() as bar:
        task = bar.add_task("reading KiB", total=size // 1024)
        for file in files:
            is_test, name = file in tests, _name(file)

            def advance(read: int) -> None:
                bar.advance(task, read / 1024)

            options = Options(frozenset(ignored), kind, is_test)
            for row in read_file(file, name, options, advance):
                yield row, is_test


def _write_rejected(rejected: Sequence[Rejected], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rejected:
            stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def _statistics(
    rows: RowFilter, epoch: Sequence[Kept], chat: Chat, files: Sequence[str]
) -> dict[str, Any]:
    """Counts and lengths, ready for JSON and the same for the same rows.

    epoch: the kept rows, those to train on as often as they are in an epoch.
    files: names of all files that were read, also of those without rows.
    """
    kept = Counter(row.file for row in rows.kept)
    rejected = Counter(row.file for row in rows.rejected)
    read = kept + rejected
    return {
        "rows": {"read": read.total(), "kept": kept.total(), "rejected": rejected.total()},
        "rejected": dict(Counter(row.reason for row in rows.rejected).most_common()),
        "rejected_fields": _fields(rows.rejected),
        "left_out_fields": dict(rows.left_out.most_common()),
        "files": {
            name: {"read": read[name], "kept": kept[name], "rejected": rejected[name]}
            for name in files
        },
        "splits": {
            split: _describe([row for row in epoch if row.split == split]) for split in SPLITS
        },
        "histogram": samples.histogram([len(ids) for row in rows.kept for ids, _ in row.sides]),
        "conflicts": len(rows.conflicts),
        "first_conflicts": [asdict(conflict) for conflict in rows.conflicts[:MAX_CONFLICTS]],
        "template_prints_the_date": chat.template.is_dated,
    }


def _fields(rejected: Iterable[Rejected]) -> dict[str, dict[str, int]]:
    """By reason, the fields of the data that are the reason, with the number of rows."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rejected:
        if row.field is not None:
            found[row.reason][row.field] += 1
    return {reason: dict(fields.most_common()) for reason, fields in found.items()}


def _named(fields: Mapping[str, int]) -> str:
    """Fields with their numbers of rows, the most common ones."""
    shown = [f"{name} ({count})" for name, count in list(fields.items())[:MAX_NAMES]]
    more = len(fields) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _reasons(rejected: Mapping[str, int], fields: Mapping[str, Mapping[str, int]]) -> str:
    """`3 × unused field: history (2), chosen (1); 1 × bad JSON`."""
    return "; ".join(
        f"{count} × {reason}" + (f": {_named(fields[reason])}" if reason in fields else "")
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


def _refuse_if_bad(
    config: Config, statistics: Mapping[str, Any], rejected: Sequence[Rejected], out: Path
) -> None:
    limit, recorded = config.prepare.max_reject_share, config.data.folder / config.data.recorded

    def counts(file: str) -> bool:
        # Users repeat themselves: duplicates among recorded rows do not mean that a file is wrong.
        return Path(file).parent != recorded

    refused = [row for row in rejected if counts(row.file)]
    read = sum(rows["read"] for file, rows in statistics["files"].items() if counts(file))
    if len(refused) > limit * read:
        common = Counter(row.reason for row in refused).most_common(3)
        reasons = _reasons(dict(common), _fields(refused))
        worst = Counter(row.file for row in refused).most_common(1)[0]
        raise DataError(
            f"{len(refused)} of {read} rows were rejected, more than "
            f"prepare.max_reject_share={limit:g} allows ({reasons}; most in {worst[0]}): "
            + "".join(f"{ADVICE[reason]}; " for reason, _ in common if reason in ADVICE)
            + f"see {out / 'rejected.jsonl'}, then correct the data or raise the share"
        )
    for split, setting in (("train", "data.train"), ("test", "data.test")):
        if not statistics["splits"][split]["rows"]:
            seen = f"see {out / 'rejected.jsonl'} and {setting}"
            if not rejected:
                seen = f"the files of {setting} have no rows, add some or name other files"
            raise DataError(f"no row is left for the {split} split: {seen}")


def _untrained(kept: Sequence[Kept], shape: Shape, chat: Chat) -> dict[str, Any]:
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


def _choose_samples(kept: Sequence[Kept], count: int) -> list[Row]:
    """Training rows, spread evenly over the files."""
    training = [row for row in kept if row.split == "train"]
    count = min(count, len(training))
    return [training[i * len(training) // count].unpack() for i in range(count)]


def _metrics(statistics: Mapping[str, Any]) -> dict[str, float]:
    rows = statistics["rows"]
    metrics = {"rows_read": rows["read"], "rows_rejected": rows["rejected"]}
    metrics["reject_share"] = rows["rejected"] / max(1, rows["read"])
    metrics["conflicts"] = statistics["conflicts"]
    for reason, count in statistics["rejected"].items():
        metrics[f"rejected_{reason.replace(' ', '_').lower()}"] = count
    for split, figures in statistics["splits"].items():
        metrics |= {f"{split}_{name}": value for name, value in figures.items()}
    return metrics


def _show_unused(statistics: Mapping[str, Any], ignored: Sequence[str]) -> None:
    """Warn of files without rows, of rejected rows, and of fields and settings without effect."""
    from rich.markup import escape

    rows = statistics["rows"]
    empty = [name for name, counts in statistics["files"].items() if not counts["read"]]
    if empty:
        get_console().print(f"[yellow]Files without rows[/]: {escape(', '.join(empty))}")
    if rows["rejected"]:
        reasons = _reasons(statistics["rejected"], statistics["rejected_fields"])
        get_console().print(
            f"[yellow]{rows['rejected']} of {rows['read']} rows are not used[/]: "
            + escape(f"{reasons} (see rejected.jsonl)")
        )
    if unknown := [name for name in ignored if name not in statistics["left_out_fields"]]:
        named = escape(", ".join(unknown))
        get_console().print(f"[yellow]data.ignore_fields: in no row[/]: {named}")
    if statistics["left_out_fields"]:
        named = escape(_named(statistics["left_out_fields"]))
        get_console().print(f"Fields that training does not use, and their rows: {named}")


def _show(chat: Chat, shown: Sequence[Row], statistics: Mapping[str, Any], kind: RowKind) -> None:
    """Print samples, splits and warnings."""
    from rich.markup import escape
    from rich.table import Table

    console = get_console()
    console.print(*samples.panels(chat, shown), sep="\n")
    table = Table(
        "split", "rows", "tokens", "trained on", *(f"p{p}" for p in PERCENTILES), "longest"
    )
    for split, figures in statistics["splits"].items():
        lengths = [figures.get(f"length_{p}", 0) for p in [*(f"p{p}" for p in PERCENTILES), "max"]]
        cells = [
            f"{figures['rows']:,}",
            f"{figures['tokens']:,}",
            f"{figures['trained_share']:.0%}",
        ]
        table.add_row(split, *cells, *map(str, lengths))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if "mixture" in statistics:
        parts = Table("training file", "weight", "rows", "in an epoch", "share of trained tokens")
        for part in statistics["mixture"]:
            share = f"{part['share_of_trained_tokens']:.1%}"
            cells = [f"{part[key]:,}" for key in ("rows", "rows_in_an_epoch")]
            parts.add_row(escape(part["file"]), f"{part['weight']:g}", *cells, share)
        console.print(parts)
    if statistics["conflicts"]:
        first = statistics["first_conflicts"][0]
        told = "verdict on the same answers" if kind != "answers" else "answer"
        console.print(
            f"[yellow]{statistics['conflicts']} rows repeat a question with another {told}[/]: "
            + escape(f"{first['question']!r} in {first['place']} and {first['other']}")
            + " (more in statistics.json)"
        )
    untrained = statistics["untrained_tokens"]
    if untrained["count"]:
        first = ", ".join(f"{t['text']!r} ({t['times']} times)" for t in untrained["first"][:3])
        console.print(
            f"[yellow]{untrained['count']} tokens of your answers have untrained output rows in "
            f"this model[/]: {escape(first)}. Their rows are alike, so the model confuses them; an "
            "adapter cannot change that: train with finetune=sft or "
            "finetune.adapter.modules_to_save=[lm_head], or use another base model"
        )
    if statistics["template_prints_the_date"]:
        console.print(
            "[yellow]The chat template prints today's date[/]: the dataset will differ tomorrow"
        )
