"""Read every byte of every artifact, and compare it with the manifests.

Other stages trust files whose size and time of change are as they were when they were last read.
This one trusts nothing: it reads all files again, checks each manifest against its seal, and
compares what each artifact was made from with what is there now.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import SWEEPS, VARIANTS, Artifact, edited_since, open_artifact
from pipeline.core.console import one_line, output_console
from pipeline.core.errors import ArtifactError
from pipeline.orchestration.stage_versions import recorded


@dataclass(frozen=True)
class Finding:
    """What was found of one artifact. problem: None if it is as it was made."""

    name: str
    bytes: int
    problem: str | None = None
    note: str = ""


def run(config: Config) -> None:
    """Print what was found of each artifact.

    Raises:
        ArtifactError: an artifact is altered or not whole, or there is none.
    """
    from rich.markup import escape

    console = output_console()
    findings = []
    for finding in verify(config.artifacts):  # one line an artifact, as each is read
        findings.append(finding)
        problem = escape(one_line(finding.problem or ""))
        state = f"[red]{problem}[/]" if problem else "[green]whole[/]"
        note = f" ({escape(finding.note)})" if finding.note else ""
        size = f"{finding.bytes / 2**20:>10,.1f} MiB"
        console.print(f"{finding.name:<12} {size}  {state}{note}", soft_wrap=True)
    if not findings:
        raise ArtifactError(
            f"{config.artifacts} has no artifact: run `python -m pipeline stage=all`"
        )
    if bad := [finding.name for finding in findings if finding.problem]:
        raise ArtifactError(
            f"{len(bad)} of {len(findings)} artifacts in {config.artifacts} are not as they were "
            f"made: {', '.join(bad)}"
        )


def verify(folder: Path) -> Iterator[Finding]:
    """What is found of the artifacts below a folder, of those made with other settings, and of
    those of a sweep's runs."""
    for runs in (folder, *sorted(folder.glob(f"{SWEEPS}/*/*"))):
        prefix = "" if runs == folder else f"{runs.relative_to(folder).as_posix()}/"
        yield from _verify_run(runs, prefix)


def _verify_run(folder: Path, prefix: str) -> Iterator[Finding]:
    opened: dict[str, Artifact] = {}
    for stage in (name for name in recorded() if "/" not in name):
        path = folder / stage
        if not path.exists() and not path.is_symlink():
            continue
        finding, artifact = _read(path, stage, f"{prefix}{stage}")
        if artifact:
            opened[stage] = artifact
        else:
            yield finding
    for stage, artifact in opened.items():
        yield Finding(
            f"{prefix}{stage}", artifact.manifest.bytes, *_against_inputs(artifact, opened)
        )
    for path in sorted((folder / VARIANTS).glob("*")):
        stage = path.name.rpartition("-")[0]
        yield _read(path, stage, f"{prefix}{VARIANTS}/{path.name}")[0]


def _read(path: Path, stage: str, name: str) -> tuple[Finding, Artifact | None]:
    try:
        artifact = open_artifact(path, stage=stage, reread=True)
    except ArtifactError as error:
        return Finding(name, 0, str(error)), None
    return Finding(name, artifact.manifest.bytes), artifact


def _against_inputs(artifact: Artifact, opened: dict[str, Artifact]) -> tuple[str | None, str]:
    """A problem, and a note, from comparing what an artifact was made from with what is there."""
    manifest = artifact.manifest
    others, gone = [], []
    for stage, digest in manifest.inputs.items():
        if stage not in opened:
            gone.append(stage)
        elif opened[stage].manifest.digest != digest:
            others.append(stage)
        elif edited_since(opened[stage].manifest, manifest):
            return f"the manifest of {stage} is not the one that it was made from", ""
    notes = []
    if others:
        notes.append(f"made from another {' and '.join(others)} than the one that is there")
    if gone:
        notes.append(f"made from {' and '.join(gone)}, not whole or not there")
    return None, "; ".join(notes)
