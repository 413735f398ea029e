"""A sweep: `-m finetune.learning_rate=1e-4,2e-4` runs a stage, or the graph, once for each value.

Hydra's sweeper makes the combinations and Hydra's launcher runs them: one after the other by
default, or at the same time with hydra/launcher=joblib and others that are installed. With
launcher=slurm they are the tasks of one job array (sweep_array.py). Each run has artifacts of its
own:

    artifacts/sweeps/<stage>-<digest of the overrides>/<run>/   artifacts, params.yaml, result.json

The same command finds the same folder again, so an interrupted sweep resumes. What a run shares
with the project or with another run is linked, not made again. Runs are tracked in the project's
MLflow store. Imports nothing heavy: stages run in processes of their own.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter

from pipeline.config.schema import Config, load
from pipeline.core import artifact as artifacts
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError, GateFailed, PipelineError
from pipeline.orchestration import compose, lineage
from pipeline.orchestration.arguments import Command
from pipeline.orchestration.graph import declared_stages, read_graph
from pipeline.orchestration.graph_run import run_command
from pipeline.orchestration.project import project_folder
from pipeline.orchestration.runner import check_files, hold
from pipeline.orchestration.sweep_array import run_on_slurm
from pipeline.tracking import client as tracking

if TYPE_CHECKING:
    from rich.table import Table

PARAMS, RESULT = "params.yaml", "result.json"
FIGURES = 4  # of a run, in the table
LOSSES = ("validation_loss", "train_loss")


@dataclass(frozen=True)
class Result:
    """What became of one run.

    overrides: of this run, as Hydra made them. code: exit code; 0 is success. stage: the last that
    ran. metrics: figures that runs are compared by.
    """

    number: int
    overrides: tuple[str, ...]
    code: int
    stage: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        if self.code == 0:
            return "done"
        reason = "gate failed" if self.code == GateFailed.exit_code else f"exit code {self.code}"
        return f"{reason} in {self.stage}"


@dataclass(frozen=True)
class Run:
    """What Hydra's launcher calls for each combination, maybe in another process or machine.

    stage: to run, or "all". project: the project's folder. folder: of the sweep.
    """

    stage: str
    project: Path
    folder: Path

    def __call__(self, composed: Any) -> float | None:
        """Run the stages; the first figure of the table, for sweepers that search."""
        from hydra.core.hydra_config import HydraConfig

        job = HydraConfig.get()
        number, overrides = int(job.job.num), list(job.overrides.task)
        self.prepare(number, compose.to_tree(composed))
        result = self.run(number, overrides)
        return next(iter(result.metrics.values()), None)

    def prepare(self, number: int, composed: Mapping[str, Any]) -> None:
        """Write the settings of a run, and link what it reads."""
        place = self.folder / str(number)
        tree = {**composed, "artifacts": self._name(place)}
        compose.refuse_secrets(self.stage, tree)
        config = load(tree)
        place.mkdir(parents=True, exist_ok=True)
        (place / RESULT).unlink(missing_ok=True)
        (place / PARAMS).write_text(compose.to_yaml(tree))
        _link_inputs(self.stage, tree, config)

    def run(self, number: int, overrides: Sequence[str]) -> Result:
        """Run the stages of a run that was prepared, and keep what became of it."""
        place = self.folder / str(number)
        config = load(yaml.safe_load((place / PARAMS).read_text()))
        code, stage = self._run(place)
        tracking.wait_until_sent(self.project / config.artifacts, config.tracking, timeout=0)
        result = Result(number, tuple(overrides), code, stage, _figures(self.stage, config))
        temporary = place / f"{RESULT}.tmp"
        temporary.write_text(json.dumps(asdict(result), indent=1) + "\n")
        temporary.replace(place / RESULT)
        return result

    def _name(self, place: Path) -> str:
        """As settings say it: relative to the project, so that the project can move."""
        return str(place.relative_to(self.project))

    def _run(self, place: Path) -> tuple[int, str]:
        """The exit code, and the last stage that ran."""
        environment = {**os.environ, **tracking.new_group()}
        code, stage = 0, self.stage
        for stage in declared_stages() if self.stage == "all" else [self.stage]:
            command = [sys.executable, "-m", "pipeline", "--params", str(place / PARAMS)]
            code = run_command([*command, f"stage={stage}"], self.project, environment)
            if code:
                break
        return code, stage


def run_sweep(command: Command) -> int:
    """Run every combination and print a table; the first exit code that is not 0, or 0.

    Raises:
        ConfigError: a combination is not valid, or the stage takes no sweep. DataError,
        ArtifactError: what every run needs is not there. Busy: the same sweep is running.
    """
    stage = compose.known_stage(command.stage)
    if stage not in (*declared_stages(), "all"):
        raise ConfigError(
            f"stage={stage} takes no --multirun: choose from {', '.join(declared_stages())}, all"
        )
    if command.params:
        raise ConfigError("--params holds one configuration: leave it out with --multirun")
    on_slurm = "launcher=slurm" in command.overrides
    places = [o for o in command.overrides if o.startswith("launcher")] if on_slurm else []
    words = [o for o in command.overrides if o not in places]
    if refused := [o for o in words if o.startswith(("artifacts=", "launcher"))]:
        raise ConfigError(
            f"{refused[0]} cannot be set with --multirun: each run has a folder below "
            "artifacts/sweeps, and hydra/launcher or launcher=slurm says where runs go"
        )
    project = project_folder()
    main = project / "artifacts"
    with compose.hydra(words, plugins=True) as (composer, overrides):
        combinations = _combinations(composer, overrides)
        for combination in combinations:
            _check(stage, combination)
        cluster = _on_slurm(combinations, places) if on_slurm else None
        name = f"{stage}-{artifacts.sha256_of_json(sorted(words))[:8]}"
        folder = main / artifacts.SWEEPS / name
        get_console().print(f"sweep in {folder.relative_to(project)}", soft_wrap=True)
        with hold(folder):
            for old in folder.glob(f"*/{RESULT}"):
                old.unlink()
            if cluster:
                for number, combination in enumerate(combinations):
                    Run(stage, project, folder).prepare(number, compose.compose_words(combination))
                run_on_slurm(stage, project, folder, combinations, cluster)
            else:
                composer.multirun(
                    compose.CONFIG,
                    Run(stage, project, folder),
                    [
                        f"hydra.sweep.dir={compose.quote(str(folder))}",
                        "hydra.sweep.subdir=${hydra.job.num}",
                        *overrides,
                    ],
                    with_log_configuration=False,
                )
            results = sorted(read_results(folder), key=lambda result: result.number)
    get_console().print(results_table(results))
    if cluster and len(results) < len(combinations):
        raise PipelineError(
            f"{len(combinations) - len(results)} of {len(combinations)} runs left no result in "
            f"{folder}: see the logs of the job array, and run the same command again"
        )
    return next((result.code for result in results if result.code), 0)


def _on_slurm(combinations: Sequence[list[str]], places: Sequence[str]) -> Config:
    """The configuration of a job array's launcher, with the settings of the first run.

    places: the settings of the launcher, of which the runs do not know.

    Raises:
        ConfigError: they are not valid, or no array can run this sweep.
    """
    if not combinations:
        raise ConfigError(
            "launcher=slurm runs all combinations at once, and hydra/sweeper chooses one after the "
            "other: leave one of them out"
        )
    config = load(compose.compose_words([*combinations[0], *places]))
    launcher = config.launcher
    if launcher.nodes > 1 or launcher.dry_run:
        raise ConfigError(
            f"launcher.nodes={launcher.nodes}, launcher.dry_run={str(launcher.dry_run).lower()}: "
            "each run of a sweep is a task on one machine, and is submitted: leave them out"
        )
    return config


def _combinations(composer: Any, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, if Hydra's own sweeper makes them; other sweepers choose later."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(override.startswith("hydra/sweeper") for override in overrides):
        return []
    parser = OverridesParser.create(config_loader=composer.config_loader)
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
    return batch


def _check(stage: str, overrides: list[str]) -> None:
    """Refuse a combination before any runs."""
    tree = compose.compose_words(overrides)
    compose.refuse_secrets(stage, tree)
    config, graph = load(tree), read_graph(tree)
    lineage.check(stage, tree, config, overrides)
    for name in declared_stages() if stage == "all" else [stage]:
        check_files(graph[name])
    if stage != "all":
        for name in graph[stage].inputs:
            artifacts.require_folder(config.artifacts / name)


def _link_inputs(stage: str, tree: Mapping[str, Any], config: Config) -> None:
    """A single stage reads what the project's last runs made."""
    if stage == "all":
        return
    main = artifacts.main_folder(config.artifacts)
    for name in read_graph(tree)[stage].inputs:
        artifacts.link_folder(main / name, config.artifacts / name)


def _figures(stage: str, config: Config) -> dict[str, float]:
    """What a run is compared by: of the graph, how good its models are; of a stage, its figures,
    the losses first."""
    if stage != "all":
        found = _metrics(config.artifacts / stage)
        return {name: found[name] for name in dict.fromkeys([*LOSSES, *found]) if name in found}
    stages = ("evaluate", "benchmark", "finetune")
    models, engine, losses = (_metrics(config.artifacts / name) for name in stages)
    scores, metric = {**models, **engine}, config.evaluate.main
    chosen = [f"{metric}/{name}" for name in ("tuned", "served")]
    figures = {name: scores[name] for name in chosen if name in scores}
    return figures | {name: losses[name] for name in LOSSES if name in losses}


def _metrics(folder: Path) -> Mapping[str, float]:
    for place, manifest in artifacts.kept(folder.parent, folder.name):
        if place == folder:
            return manifest.metrics
    return {}


def read_results(folder: Path) -> list[Result]:
    """Results of the runs of a sweep that ended. One whose file is broken did not."""
    found = []
    for file in folder.glob(f"*/{RESULT}"):
        with suppress(OSError, ValueError, RecursionError):
            found.append(_RESULT.validate_json(file.read_bytes()))
    return found


_RESULT = TypeAdapter(Result)


def results_table(results: Sequence[Result]) -> "Table":
    """A row for each run: its number, the settings that differ, how it ended, and the first
    figures that differ, or the first ones if none does. A setting is named by its last part where
    that is clear."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    settings = [dict(o.lstrip("+").partition("=")[::2] for o in r.overrides) for r in results]
    keys = [k for k in dict.fromkeys(k for s in settings for k in s)
            if len({s.get(k) for s in settings}) > 1]  # fmt: skip
    figures = {name: {r.metrics.get(name) for r in results} for r in results for name in r.metrics}
    differing = [name for name, values in figures.items() if len(values) > 1]
    names = (differing or list(figures))[:FIGURES]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    last = [key.rpartition(".")[2] for key in keys]
    titles = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    for column in ("run", *titles, "state"):
        table.add_column(escape(column), overflow="fold")
    for name in names:
        table.add_column(escape(name.replace("_", " ").replace("/", " ")), justify="right")
    for result, given in zip(results, settings, strict=True):
        shown = [f"{result.metrics[n]:.4g}" if n in result.metrics else "" for n in names]
        colour = "green" if result.code == 0 else "red"
        table.add_row(
            str(result.number),
            *(escape(given.get(key, "")) for key in keys),
            f"[{colour}]{escape(result.state)}[/]",
            *shown,
        )
    return table


def main(arguments: Sequence[str]) -> int:
    """A task of a job array: one run of a sweep."""
    stage, project, folder, number, *overrides = arguments
    return Run(stage, Path(project), Path(folder)).run(int(number), overrides).code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
