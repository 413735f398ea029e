"""Where a conversation is: in the project's files, in its datasets, and so in which versions.

    wanted = read_wanted("How do I freeze my card?", config)      # or a file with its rows
    found = search(wanted, config, lineage)
    forget(found, config)

A text is in a row if a turn of it holds it, whatever its white space and letter case. A row of a
file is in another if one of the two begins with the turns of the other: a server records each
answer with all turns before it.
"""

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config.finetune import OBJECTIVES, RowKind
from pipeline.config.schema import Config
from pipeline.core.errors import ArtifactError, ConfigError, DataError, MissingRuntime
from pipeline.data.dataset import SPLITS, read_messages
from pipeline.data.forgotten import add_forgotten, beginnings, key_of, write_whole
from pipeline.data.pii import Masker
from pipeline.data.preference_rows import parse_example
from pipeline.data.preparation.decisions import find_data, options_of
from pipeline.data.reading import Options, read_file
from pipeline.data.rows import Conversation, excerpt
from pipeline.models.chat.messages import Message, Unusable
from pipeline.orchestration.audit.lineage import Lineage, artifact_id, version_id

LEAST_TEXT = 4  # characters of a text to look for
KINDS: Sequence[RowKind] = ("answers", "pairs", "labels")
PART = ".jsonl.part"  # of a file that a server writes at the moment
REPORTS = (".json", ".jsonl", ".html", ".md", ".txt")  # small files that can quote a row
MOST_REPORT = 16 * 2**20  # bytes of one
LEAST_QUOTE = 12  # characters by which a quote is known
Origin = Literal["snapshot", "recording", "feedback", "file"]


def plain(text: str) -> str:
    """A text without differences of white space and letter case."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True)
class Wanted:
    """What to look for.

    text: `plain`; "" if rows are wanted. rows: conversations. quotes: texts as they were written,
    to be looked for in reports. keys: of the rows; parts: of their beginnings.
    """

    text: str = ""
    rows: Sequence[Sequence[Message]] = ()
    quotes: Sequence[str] = ()
    keys: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str, rows: Sequence[Sequence[Message]]) -> "Wanted":
        keys = [list(beginnings(messages)) for messages in rows]
        asked = [str(turn["content"]) for row in rows for turn in row if turn["role"] == "user"]
        return cls(
            plain(text),
            rows,
            [text] if text else list(dict.fromkeys(asked)),
            frozenset(each[-1] for each in keys),
            frozenset(key for each in keys for key in each[:-1]),
        )

    def find(self, messages: Sequence[Message]) -> Literal["whole", "part"] | None:
        """Whether a row holds it whole, or is a part of it."""
        if self.text:
            said = (plain(str(turn["content"])) for turn in messages)
            return "whole" if any(self.text in turn for turn in said) else None
        keys = list(beginnings(messages))
        if not self.keys.isdisjoint(keys):
            return "whole"
        return "part" if keys and keys[-1] in self.parts else None

    def masked(self, kinds: Sequence[str]) -> "Wanted":
        """The same as prepare.mask_pii writes it.

        Raises:
            MissingRuntime: the extra `pii` is not installed.
        """
        from collections import Counter

        masker = Masker(kinds)
        rows = []
        for messages in self.rows:
            row = masker.row(Conversation("", 0, list(messages), ""), Counter())
            if isinstance(row, Conversation):
                rows.append(row.messages)
        return Wanted.of(masker.text(self.text, Counter()), rows)


@dataclass(frozen=True)
class Place:
    """A row of a file. origin: a snapshot for training, a server's recording or feedback, or
    another file, which a person wrote. key: of its conversation. is_part: it is the beginning of
    what was looked for."""

    file: Path
    line: int
    origin: Origin
    text: str
    key: str = ""
    is_part: bool = False

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class InDataset:
    """What a dataset has of it. rows: their places, by split. artifact: places of the dataset.
    keys: of the rows that hold it whole."""

    digest: str
    artifact: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class InVersion:
    """A registered version. rows: number of rows by split, of its dataset; None if the dataset is
    no longer here, so that nobody can tell."""

    number: int
    title: str
    dataset: str
    rows: Mapping[str, int] | None
    aliases: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        return bool(self.rows and (self.rows.get("train") or self.rows.get("validation")))


@dataclass(frozen=True)
class Found:
    """places: rows of files. datasets: those that hold it. versions: all of them. written: files
    that a server is writing and that hold it. quoted: reports that quote it. keys: of what was
    looked for and of rows of datasets that hold it. notes: what could not be told."""

    places: Sequence[Place] = ()
    datasets: Sequence[InDataset] = ()
    versions: Sequence[InVersion] = ()
    written: Sequence[Path] = ()
    quoted: Sequence[Path] = ()
    keys: frozenset[str] = frozenset()
    notes: Sequence[str] = ()

    @property
    def removable(self) -> list[Place]:
        """Rows of files that the pipeline wrote."""
        return [place for place in self.places if place.origin != "file"]


def read_wanted(given: str, config: Config) -> Wanted:
    """What lineage.conversation means: rows, if it names a file; else a text.

    Raises:
        ConfigError: the text is too short. DataError: the file cannot be read or has no row.
    """
    file = Path(given)
    with suppress(OSError):  # a long text is no file's name
        if file.is_file():
            rows = [side for _, sides, _ in _rows(file, config) for side in sides]
            if not rows:
                raise DataError(
                    f"lineage.conversation={file} has no row that data settings can read: give "
                    "rows such as `prepare` reads, or a part of the conversation's text"
                )
            return Wanted.of("", rows)
    if len(plain(given)) < LEAST_TEXT:
        raise ConfigError(
            f"lineage.conversation={given!r} is too short to look for: give at least {LEAST_TEXT} "
            "characters of what was said, or a file with the row"
        )
    return Wanted.of(given, ())


def search(wanted: Wanted, config: Config, lineage: Lineage, artifacts: Path) -> Found:
    """Where it is.

    Raises:
        DataError: a data file cannot be read.
    """
    notes: list[str] = []
    datasets = list(_in_datasets(wanted, lineage, notes))
    places = sorted(_places(wanted, config), key=lambda place: (place.origin, place.name))
    return Found(
        places,
        [each for each in datasets if each.rows],
        list(_in_versions(lineage, datasets)),
        [file for folder in _recordings(config) for file in _written(folder, wanted)],
        list(_quoted(wanted, artifacts)),
        wanted.keys.union(*(each.keys for each in datasets)),
        notes,
    )


def forget(found: Found, config: Config) -> tuple[Path, list[Path]]:
    """List the conversations, so that no dataset takes them again, and remove their rows from
    snapshots, recordings and feedback. Files that a person wrote stay as they are.

    Returns:
        the list, and the files that lost rows.

    Raises:
        ResourceError: a file cannot be written. DataError: one cannot be read.
    """
    whole = {place.key for place in found.places if place.key and not place.is_part} | found.keys
    parts = {place.key for place in found.places if place.key and place.is_part}
    file = add_forgotten(config.data.folder / config.data.recorded, whole, parts)
    lines: dict[Path, set[int]] = {}
    for place in found.removable:
        lines.setdefault(place.file, set()).add(place.line)
    for changed, gone in lines.items():
        _remove(changed, gone)
    return file, list(lines)


def _remove(file: Path, gone: set[int]) -> None:
    """Remove lines, by number; the file, if none is left."""
    try:
        content = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): allow it") from error
    left = [line for number, line in enumerate(content, 1) if number not in gone]
    if any(line.strip() for line in left):
        write_whole(file, b"".join(left))
    else:
        file.unlink(missing_ok=True)


def _places(wanted: Wanted, config: Config) -> Iterator[Place]:
    snapshots = config.data.folder / config.data.recorded
    folders: dict[Path, Origin] = {snapshots: "snapshot"}
    for folder in _recordings(config):
        folders.setdefault(folder, "recording")
    if config.serve.feedback is not None:
        for name in ("labels", "pairs"):
            folders.setdefault(config.serve.feedback / name, "feedback")
    seen = set()
    for folder, origin in folders.items():
        for file in sorted(folder.glob("*.jsonl")):
            seen.add(file.resolve())
            yield from _in_lines(file, origin, wanted, config)
    for file in find_data(config.data):
        if file.resolve() in seen:
            continue
        for line, sides, shown in _rows(file, config):
            yield from _matching(wanted, file, line, "file", sides, shown)


def _in_lines(file: Path, origin: Origin, wanted: Wanted, config: Config) -> Iterator[Place]:
    """Rows of a file that the pipeline wrote, and lines that are none but hold the text."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): allow it") from error
    for number, raw in enumerate(lines, 1):
        value = _json(raw)
        sides = _sides(value, config)
        if found := list(_matching(wanted, file, number, origin, sides, "")):
            yield from found
        elif wanted.text and any(wanted.text in plain(text) for text in _texts(value)):
            yield Place(file, number, origin, excerpt(raw.decode(errors="replace")))


def _matching(
    wanted: Wanted,
    file: Path,
    line: int,
    origin: Origin,
    sides: Sequence[Sequence[Message]],
    shown: str,
) -> Iterator[Place]:
    for messages in sides:
        if how := wanted.find(messages):
            said = shown or excerpt(" / ".join(str(turn["content"]) for turn in messages))
            yield Place(file, line, origin, said, key_of(messages), how == "part")
            return


def _rows(file: Path, config: Config) -> Iterator[tuple[int, list[list[Message]], str]]:
    """Line, conversations and excerpt of each row of a data file that can be read as one."""
    kind = OBJECTIVES[config.finetune.objective].rows
    options = options_of(config.data, kind)
    for given in (options, Options(options.ignored, "answers", columns=options.columns)):
        found = False
        for row in read_file(file, str(file), given):
            if isinstance(row, Conversation):
                found = True
                yield row.line, [row.messages, *([row.rejected] if row.rejected else [])], \
                    row.excerpt  # fmt: skip
        if found:
            return
    if file.suffix == ".jsonl":  # of another objective, such as feedback
        for number, raw in enumerate(file.read_bytes().splitlines(), 1):
            if sides := _sides(_json(raw), config):
                yield number, sides, excerpt(raw.decode(errors="replace"))


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return raw.decode(errors="replace")


def _sides(value: object, config: Config) -> list[list[Message]]:
    """The conversations of a row, whatever objective it is for."""
    for kind in KINDS:
        try:
            row = parse_example(
                value, config.data.ignore_fields, kind, columns=config.data.columns,
                named=config.data.format,
            )  # fmt: skip
        except Unusable:
            continue
        return [row.messages, *([row.rejected] if row.rejected else [])]
    return []


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _recordings(config: Config) -> list[Path]:
    """Folders that servers record into, or that recordings were moved to."""
    named = (config.retrain.recordings, config.serve.record)
    return [folder for folder in dict.fromkeys(named) if folder is not None]


def _written(folder: Path, wanted: Wanted) -> Iterator[Path]:
    """Files that a server is writing and that hold it."""
    for file in sorted(folder.glob(f"*{PART}")):
        with suppress(OSError):
            for raw in file.read_bytes().splitlines():
                value = _json(raw)
                said = value.get("messages") if isinstance(value, dict) else None
                turns = [t for t in said or () if isinstance(t, dict) and "content" in t]
                if turns and wanted.find(turns):
                    yield file
                    break


def _in_datasets(wanted: Wanted, lineage: Lineage, notes: list[str]) -> Iterator[InDataset]:
    """Every dataset that is here, with the rows that match."""
    for node in lineage.all():
        if node.kind != "artifact" or node.name != "prepare" or not node.places:
            continue
        folder = Path(node.places[0])
        kinds = node.facts.get("masked") or ()
        look_for = [wanted]
        if kinds:
            try:
                look_for.append(wanted.masked(kinds))
            except MissingRuntime:
                notes.append(
                    f"{folder} was made with prepare.mask_pii: rows in which something was masked "
                    "are found only with the extra (make setup EXTRA=pii)"
                )
        rows: dict[str, list[str]] = {}
        keys = set()
        try:
            for split in SPLITS:
                for messages, rejected, source in read_messages(folder, split):
                    sides = [messages, *([rejected] if rejected else [])]
                    if any(each.find(side) for each in look_for for side in sides):
                        rows.setdefault(split, []).append(source)
                    keys |= {key_of(side) for side in sides if wanted.find(side) == "whole"}
        except (DataError, ArtifactError) as error:
            notes.append(f"{folder} cannot be searched: {error}")
            continue
        yield InDataset(node.digest, node.places, rows, frozenset(keys))


def _in_versions(lineage: Lineage, datasets: Iterable[InDataset]) -> Iterator[InVersion]:
    searched = {each.digest: each.rows for each in datasets}
    for node in lineage.all():
        if node.kind != "version":
            continue
        number, aliases = node.facts["number"], tuple(node.facts["aliases"])
        made_from = [n for n in lineage.before(version_id(number)) if n.name == "prepare"]
        dataset = made_from[0].digest if made_from else ""
        rows = searched.get(dataset)
        counts = None if rows is None else {split: len(found) for split, found in rows.items()}
        yield InVersion(number, node.name, dataset, counts, aliases)


def _quoted(wanted: Wanted, artifacts: Path) -> Iterator[Path]:
    """Reports below the artifacts that quote it, those that MLflow was sent too."""
    forms = {
        plain(form)
        for quote in wanted.quotes
        if len(plain(quote)) >= LEAST_QUOTE
        for form in (quote, json.dumps(quote)[1:-1], json.dumps(quote, ensure_ascii=False)[1:-1],
                     html.escape(quote))
    }  # fmt: skip
    for file in sorted(artifacts.rglob("*")) if forms else ():
        with suppress(OSError):
            if file.suffix in REPORTS and file.is_file() and file.stat().st_size <= MOST_REPORT:
                content = plain(file.read_text(encoding="utf-8", errors="replace"))
                if any(form in content for form in forms):
                    yield file


def datasets_after(lineage: Lineage, found: Found) -> list[str]:
    """Places of everything that was made from datasets that hold it, and of those themselves."""
    ids = [artifact_id("prepare", each.digest) for each in found.datasets]
    nodes = [*(lineage.nodes[i] for i in ids), *lineage.after(*ids)]
    return [place for node in nodes for place in node.places]
