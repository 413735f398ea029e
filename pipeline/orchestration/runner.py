"""One stage, from its inputs to its committed artifact: open → run → commit → track.

Knows what an artifact is and when one can be reused. Knows nothing of DVC, or of what a stage does.
"""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core import artifact as artifacts
from pipeline.core.artifact import Artifact, Manifest, Outcome
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, Busy, DataError, GateFailed, ResourceError
from pipeline.core.paths import PACKAGE
from pipeline.core.resource_errors import resource_errors
from pipeline.core.stage import Stage, identity, stage_module
from pipeline.data.preparation import remote
from pipeline.models.sources.address import not_a_folder
from pipeline.models.sources.fetching import fetch
from pipeline.orchestration import figures
from pipeline.orchestration.graph import Node, read_graph, select
from pipeline.tracking import client as tracking

# Versions that every manifest names, where installed. Which of them count is for the stage to say.
PACKAGES = (
    "torch numpy transformers tokenizers safetensors nemo_toolkit megatron-core nvidia-modelopt "
    "transformer-engine peft onnxruntime onnxruntime-genai tensorrt_llm vllm"
).split()

# Held in the folder of artifacts: by a stage, and by a run of the whole graph, which starts stages.
STAGE_LOCK, GRAPH_LOCK = ".lock", ".graph.lock"


@dataclass(frozen=True)
class Work:
    """What a stage is about to do, and its identity."""

    node: Node
    inputs: Mapping[str, Artifact]
    settings: Mapping[str, Any]
    files: Mapping[str, str]  # path → digest
    stage: Stage
    versions: Mapping[str, Any]  # of the stage and its libraries: see core/stage.py
    fingerprint: str
    code: Mapping[str, Any]  # the commit that runs it


def run_stage(name: str, tree: Mapping[str, Any], config: Config) -> Artifact:
    """Run a stage, or reuse what an earlier run with the same settings and inputs made.

    Args:
        name: the stage's name, as in dvc.yaml.
        tree: the composed configuration; config: the same, validated.

    Raises:
        PipelineError: any of pipeline.core.errors, with what to do next.
    """
    folder = config.artifacts
    node = read_graph(tree)[name]
    if config.model.path in node.files:
        fetch(config.model.path, folder)
    # Before the folder of artifacts is made: a wrong setting leaves nothing behind.
    check_files(with_named_files(node, config))
    for stage in node.inputs:
        artifacts.require_folder(folder / stage)
    if config.data.folder in node.files:
        remote.fetch(config.data, folder)
    with hold(folder):
        inputs = {
            stage: artifacts.open_artifact(folder / stage, reread=config.verify)
            for stage in node.inputs
        }
        artifacts.require_one_history(inputs)
        work = plan(node, inputs, tree, config)
        track = tracking.start_stage(
            folder,
            stage=name,
            config=config.tracking,
            params=work.settings,
            inputs=inputs,
            files=work.files,
        )
        try:
            made, reused = _take_or_make(work, config)
            figures.write_figures(folder, made)
            failure = made.manifest.failure
            track.finish("FAILED" if failure else "FINISHED", made, reused=reused, error=failure)
        except BaseException as error:
            track.finish(
                "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED",
                None,
                error=str(error) or type(error).__name__,
            )
            raise
    waiting = tracking.waiting_line(folder, config.tracking)
    if waiting:
        get_console().print(waiting)
    if failure:
        raise GateFailed(f"{failure} (report: {made.path})")
    return made


def plan(
    node: Node, inputs: Mapping[str, Artifact], tree: Mapping[str, Any], config: Config
) -> Work:
    """The identity of what a stage would make.

    It consists of settings, the content of inputs and files, the declared version of the stage and
    the versions of the libraries that it uses. The code itself is not part of it: a comment must
    not retrain a model (docs/ARCHITECTURE.md).

    Raises:
        DataError: a file that settings name does not exist.
    """
    code = _git_state()  # now: the checkout may move to another commit while a stage runs
    settings = select(tree, node.params)
    node = with_named_files(node, config)
    check_files(node)
    files = {str(path): content_digest(path, config.artifacts) for path in node.files}
    stage, versions = _versions(node.name, config)
    identity = {
        "stage": node.name,
        "settings": settings,
        "inputs": {stage: a.manifest.digest for stage, a in inputs.items()},
        **versions,
    }
    # A model is its content, wherever its folder is.
    if isinstance(section := settings.get("model"), Mapping):
        own = {key: value for key, value in section.items() if key != "path"}
        identity["settings"] = {**settings, "model": own}
    model = str(config.model.path)
    identity["files"] = {("model" if p == model else p): d for p, d in files.items()}
    fingerprint = artifacts.sha256_of_json(identity)
    return Work(node, inputs, settings, files, stage, versions, fingerprint, code)


def with_named_files(node: Node, config: Config) -> Node:
    """The stage with the files that its settings name, beside those in dvc.yaml: the function
    `files` of its module says which. DVC learns of them from stage_versions.py."""
    module = stage_module(node.name)
    named = tuple(module.files(config)) if hasattr(module, "files") else ()
    return replace(node, files=(*node.files, *(p for p in named if p not in node.files)))


def check_files(node: Node) -> None:
    """Raise DataError if a file or folder that settings name does not exist."""
    for path in node.files:
        if not path.exists():
            hub = not_a_folder(path)
            raise DataError(
                f"{path} does not exist: correct the setting that names it (--help lists them; "
                f"relative paths are relative to {Path.cwd()})" + (f", or {hub}" if hub else "")
            )


def _refuse_changed(work: Work, config: Config) -> None:
    """Raise DataError if a file outside the artifacts changed while the stage read it."""
    for path, before in work.files.items():
        if not Path(path).exists() or content_digest(Path(path), config.artifacts) != before:
            raise DataError(
                f"{path} changed while stage={work.node.name} read it, so nothing was kept: run "
                "the same command again when nothing writes there"
            )


def _versions(name: str, config: Config) -> tuple[Stage, Mapping[str, Any]]:
    """The facts of a stage, and its part of the fingerprint."""
    from pipeline.core import hardware

    module = stage_module(name)
    stage: Stage = module.STAGE
    components = module.components(config) if hasattr(module, "components") else ()
    libraries = {*stage.libraries, *stage.optional_libraries}
    libraries.update(*(component.libraries for component in components))
    return stage, identity(stage, components, hardware.installed_versions(libraries))


@contextmanager
def hold(folder: Path, lock: str = STAGE_LOCK) -> Iterator[int]:
    """Keep other runs out of the folder; the system releases it however the process ends.

    lock: name of the lock's file. Yields its descriptor: a process that inherits it holds the
    folder, too, for as long as it lives.

    Raises:
        Busy: another run holds the folder. ResourceError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / lock).open("a+", errors="replace")
    except IsADirectoryError as error:
        raise ResourceError(
            f"{folder / lock} is a folder, where a file is to be: remove it"
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written ({error.strerror}): choose artifacts=…"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read(20).strip() or "unknown"
            raise Busy(
                f"{folder} is in use by process {owner}: wait for it, or run single stages with "
                "artifacts=…"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield stream.fileno()


def _take_or_make(work: Work, config: Config) -> tuple[Artifact, bool]:
    """The artifact, and whether an earlier run made it."""
    name, console = work.node.name, get_console()
    place = config.artifacts / name
    key = f"{name}-{work.fingerprint[:16]}"
    variant, scratch = config.artifacts / artifacts.VARIANTS / key, config.artifacts / ".work" / key
    current = _open_if_whole(place, name, reread=config.verify)
    if current is None and (place / artifacts.MANIFEST).is_file():
        _keep_if_foreign(place)
    if current and current.manifest.fingerprint == work.fingerprint:
        console.print(f"[green]✓[/] {name}: up to date ({place})")
        return current, True
    aside = _variant_of(current, config.artifacts)
    linked = config.artifacts / ".work" / f"{key}.linked"
    for cached in (variant, scratch, linked):  # scratch: of a run killed before the rename
        if cached == linked:
            _link_of_other_run(work, config.artifacts, linked)
        found = _open_if_whole(cached, name, reread=config.verify)
        if found and found.manifest.fingerprint == work.fingerprint:
            artifacts.replace_folder(cached, place, aside)
            console.print(f"[green]✓[/] {name}: restored from cache ({place})")
            return artifacts.open_artifact(place), True
    with resource_errors(scratch, work.stage.less_memory):
        scratch.mkdir(parents=True, exist_ok=True)
        _keep_scratch_alone(scratch)
        console.rule(f"[bold]{name}", align="left")
        begin = time.monotonic()
        outcome = stage_module(name).run(config, work.inputs, scratch)
        seconds = time.monotonic() - begin
        _refuse_changed(work, config)
        shutil.rmtree(scratch / artifacts.SCRATCH, ignore_errors=True)
        manifest = _manifest(work, outcome, scratch, seconds)
        artifacts.write_manifest(scratch, manifest)
        artifacts.replace_folder(scratch, place, aside)
        artifacts.note_verified(place, manifest)
    made = artifacts.open_artifact(place)
    size = f"{made.manifest.bytes / 2**20:,.1f} MiB"
    console.print(f"[green]✓[/] {name}: {outcome.kind} in {place} ({size}, {seconds:.1f} s)")
    return made, False


def _link_of_other_run(work: Work, folder: Path, linked: Path) -> None:
    """Link what the project or a run of a sweep made with the same fingerprint, if any did."""
    for place, manifest in artifacts.kept(folder, work.node.name):
        if manifest.fingerprint == work.fingerprint and place != folder / work.node.name:
            with suppress(OSError):  # replaced meanwhile: then the stage makes it
                artifacts.link_folder(place, linked)
                return


def _keep_scratch_alone(folder: Path) -> None:
    """Remove what an interrupted run left outside .scratch/, from where stages resume.

    A file that the stage does not write this time would become part of the artifact.
    """
    for leftover in folder.iterdir():
        if leftover.name == artifacts.SCRATCH:
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _open_if_whole(path: Path, stage: str, *, reread: bool = False) -> Artifact | None:
    try:
        return artifacts.open_artifact(path, stage=stage, reread=reread)
    except ArtifactError:
        return None


def _keep_if_foreign(place: Path) -> None:
    """Keep what another version of the pipeline made as a variant: it may be hours of work."""
    try:
        content = json.loads((place / artifacts.MANIFEST).read_text())
        schema, fingerprint = content["schema"], str(content["fingerprint"])[:16]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    if schema == artifacts.SCHEMA or not fingerprint.isalnum():  # it becomes a folder's name
        return
    name = f"{place.name}-{fingerprint}"
    kept = place.parent / artifacts.VARIANTS / name
    kept.parent.mkdir(exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    place.rename(kept)
    get_console().print(
        f"{place} was written by another version of the pipeline (manifest schema {schema}): it is "
        f"kept in {kept}, and {place.name} runs again"
    )


def _variant_of(current: Artifact | None, folder: Path) -> Path | None:
    """Where the current artifact is kept, so that going back to its settings costs nothing."""
    if current is None:
        return None
    return (
        folder
        / artifacts.VARIANTS
        / f"{current.manifest.stage}-{current.manifest.fingerprint[:16]}"
    )


def _manifest(work: Work, outcome: Outcome, folder: Path, seconds: float) -> Manifest:
    from pipeline.core import hardware

    used = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return Manifest(
        kind=outcome.kind,
        stage=work.node.name,
        fingerprint=work.fingerprint,
        config=dict(work.settings),
        inputs={stage: a.manifest.digest for stage, a in work.inputs.items()},
        input_seals={stage: a.manifest.seal for stage, a in work.inputs.items()},
        files=artifacts.hash_files(folder),
        measured=sorted(outcome.measured),
        metrics={k: float(v) for k, v in outcome.metrics.items()},
        proof=dict(outcome.proof),
        failure=outcome.failure,
        versions=dict(work.versions["versions"]),
        libraries=dict(work.versions["libraries"]),
        code={**work.code, "package_sha256": _package_digest()},
        environment={
            "packages": hardware.installed_versions(PACKAGES),
            "hardware": hardware.describe(),
            "files": dict(work.files),
        },
        seconds=round(seconds, 3),
        peak_memory_bytes=max(used) * 1024,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def content_digest(path: Path, folder: Path) -> str:
    """Digest of a file, or of every file below a folder."""
    index = folder / artifacts.VERIFIED / "external.json"
    if path.is_file():
        return artifacts.sha256_with_index([path], index)[0]
    files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    names = (file.relative_to(path).as_posix() for file in files)
    digests = artifacts.sha256_with_index(files, index)
    return artifacts.sha256_of_json(dict(zip(names, digests, strict=True)))


def _package_digest() -> str:
    """Of every source file of the pipeline: provenance, which no fingerprint depends on."""
    files = sorted(PACKAGE.rglob("*.py"))
    digests = {f.relative_to(PACKAGE).as_posix(): artifacts.sha256_of_file(f) for f in files}
    return artifacts.sha256_of_json(digests)


def _git_state() -> dict[str, Any]:
    """The commit of the code, and whether files differ from it; empty outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        tracked = _git("ls-files", "--", str(PACKAGE / "__init__.py"))
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {}
    # An installed package may lie in a virtual environment inside a repository of something else.
    return {"commit": commit, "changed": bool(changed)} if tracked else {}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
