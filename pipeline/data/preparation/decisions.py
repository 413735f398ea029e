"""All rows of the data files: each is kept in a split, or rejected with a reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.config.finetune import OBJECTIVES, RowKind
from pipeline.config.schema import Config
from pipeline.core.console import progress
from pipeline.data.finding import find_files, size_of
from pipeline.data.forgotten import read_forgotten
from pipeline.data.mixture import Mixture
from pipeline.data.preparation import remote
from pipeline.data.preparation.sources import Source
from pipeline.data.preparation.test_share import TestShare
from pipeline.data.reading import Options, read_file
from pipeline.data.row_filter import Kept, RowFilter
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
    names = names_of(config, [*tests, *training])
    mixture = Mixture(
        config.data.mixture, config.data.folder, {file: names[file] for file in training}
    )
    kind = OBJECTIVES[config.finetune.objective].rows
    sources = _sources(config, tests, training, names, kind, serves_tools)
    if config.prepare.engine == "ray":
        _add_from_ray(config, sources, rows, takes_tools=serves_tools())
    else:
        _add_all(sources, rows)
    with progress() as bar:
        task = bar.add_task("comparing rows", total=len(rows))
        rows.finish(lambda compared: bar.advance(task, compared))
    return Decided(rows, kind, [source.name for source in sources], mixture)


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


def find_data(data: DataConfig) -> list[Path]:
    """All data files: of test questions, then of training rows."""
    tests, training = _find(data)
    return [*tests, *training]


def names_of(config: Config, files: Sequence[Path]) -> dict[Path, str]:
    """How rows name files: by their paths, or by their addresses if they were fetched.

    Bytes that are not UTF-8 become question marks.
    """
    folder = config.data.folder
    fetched = remote.provenance(folder, config.artifacts)
    return {
        file: (f"{fetched['source']}/{file.relative_to(folder).as_posix()}" if fetched
               else str(file)).encode(errors="replace").decode()
        for file in files
    }  # fmt: skip


def options_of(data: DataConfig, kind: RowKind) -> Options:
    """What the settings say of training rows."""
    return Options(frozenset(data.ignore_fields), kind, columns=data.columns, format=data.format)


def split_of(config: Config, serves_tools: Callable[[], bool]) -> TestShare | None:
    """What decides which training rows become test questions; None beside test files."""
    share = config.data.test_share
    return None if share is None else TestShare(share, config.seed, takes_tools=serves_tools())


def _sources(
    config: Config,
    tests: Sequence[Path],
    training: Sequence[Path],
    names: Mapping[Path, str],
    kind: RowKind,
    serves_tools: Callable[[], bool],
) -> list[Source]:
    """The files in the order in which they are read: those of test questions first."""
    options = options_of(config.data, kind)
    share = split_of(config, serves_tools)
    recorded = config.data.folder / config.data.recorded
    forgotten = read_forgotten(recorded)
    asked = replace(options, is_test=True)
    found = [Source(file, names[file], asked, forgotten=forgotten) for file in tests]
    return found + [
        Source(file, names[file], options, None if file.parent == recorded else share, forgotten)
        for file in training
    ]


def _add_all(sources: Sequence[Source], rows: RowFilter) -> None:
    """Read and render every row of every file."""
    with progress() as bar:
        task = bar.add_task("reading KiB", total=_kibibytes(sources))
        for source in sources:

            def advance(read: int) -> None:
                bar.advance(task, read / 1024)

            for read in read_file(source.file, source.name, source.options, advance):
                row, is_test = source.asked(read)
                rows.add(row, is_test=is_test)


def _add_from_ray(
    config: Config, sources: Sequence[Source], rows: RowFilter, *, takes_tools: bool
) -> None:
    """The same, read and rendered on a Ray cluster."""
    from pipeline.data.preparation import ray_cluster

    # The working folder of a task is not this one.
    sources = [replace(source, file=source.file.absolute()) for source in sources]
    model = config.model.path.absolute()
    rendering = ray_cluster.Rendering(model, config.prepare, takes_tools)
    with progress() as bar:
        task = bar.add_task("reading KiB", total=_kibibytes(sources))
        for row, left_out, read in ray_cluster.rendered_rows(sources, rendering):
            rows.take(row, left_out)
            bar.advance(task, read / 1024)


def _kibibytes(sources: Sequence[Source]) -> int:
    return sum(size_of(source.file) for source in sources) // 1024
