"""All rows of the data files: each is kept in a split, or rejected with a reason."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.config.finetune import OBJECTIVES, RowKind
from pipeline.config.schema import Config
from pipeline.core.console import progress
from pipeline.data.finding import find_files, size_of
from pipeline.data.mixture import Mixture
from pipeline.data.preparation.test_share import TestShare
from pipeline.data.reading import Options, read_file
from pipeline.data.row_filter import Kept, RowFilter
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Decided:
    """Rows about which everything is decided.

    rows: those that are kept, and those that are rejected. kind: what the kept ones teach. files:
    names of all files that were read, also of those without rows. mixture: how often rows are used.
    """

    rows: RowFilter
    kind: RowKind
    files: list[str]
    mixture: Mixture

    @cached_property
    def epoch(self) -> list[Kept]:
        """The kept rows, those to train on as often as they are in an epoch."""
        return list(self.mixture.epoch(self.rows.kept))


def decide(config: Config, chat: Chat, serves_tools: Callable[[], bool]) -> Decided:
    """Read, render and compare all rows.

    Args:
        serves_tools: whether a server of this model takes tools, as test questions with tools need.

    Raises:
        ConfigError: a glob is not valid. DataError: a file cannot be used.
    """
    rows = RowFilter(config.prepare, config.seed, chat, serves_tools)
    tests, training = _find(config.data)
    names = {file: name_of(file) for file in training}
    mixture = Mixture(config.data.mixture, config.data.folder, names)
    kind = OBJECTIVES[config.finetune.objective].rows
    options = options_of(config.data, kind)
    split = split_of(config, serves_tools)
    recorded = config.data.folder / config.data.recorded
    for row, file in _read(tests, training, options):
        is_test = file in tests
        if split and isinstance(row, Conversation) and file.parent != recorded:
            question = split.question(row)
            row, is_test = question or row, question is not None
        rows.add(row, is_test=is_test)
    with progress() as bar:
        task = bar.add_task("comparing rows", total=len(rows))
        rows.finish(lambda compared: bar.advance(task, compared))
    return Decided(rows, kind, [name_of(file) for file in tests + training], mixture)


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


def name_of(file: Path) -> str:
    """A file's path as text, with question marks for bytes that are not UTF-8."""
    return str(file).encode(errors="replace").decode()


def options_of(data: DataConfig, kind: RowKind) -> Options:
    """What the settings say of training rows."""
    return Options(frozenset(data.ignore_fields), kind, columns=data.columns, format=data.format)


def split_of(config: Config, serves_tools: Callable[[], bool]) -> TestShare | None:
    """What decides which training rows become test questions; None beside test files."""
    share = config.data.test_share
    return None if share is None else TestShare(share, config.seed, takes_tools=serves_tools())


def _read(
    tests: Sequence[Path], training: Sequence[Path], options: Options
) -> Iterator[tuple[Conversation | Rejected, Path]]:
    """Every row of every file, with its file; those of test files first."""
    files = [*tests, *training]
    size = sum(map(size_of, files))
    with progress() as bar:
        task = bar.add_task("reading KiB", total=size // 1024)
        for file in files:
            name = name_of(file)
            settings = replace(options, is_test=file in tests)

            def advance(read: int) -> None:
                bar.advance(task, read / 1024)

            for row in read_file(file, name, settings, advance):
                yield row, file
