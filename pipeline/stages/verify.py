"""Read every byte of every artifact, and compare it with the manifests.

Other stages trust files whose size and time of change are as they were when they were last read.
This one trusts nothing: it reads all files again, checks each manifest against its seal, and
compares what each artifact was made from with what is there now.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import MANIFEST, VARIANTS, Artifact, open_artifact
from pipeline.core.errors import ArtifactError


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
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in verify(config.artifacts):  # one line an artifact, as each is read
        findings.append(finding)
        state = f"[red]{escape(finding.problem)}[/]" if finding.problem else "[green]whole[/]"
        note = f" ({finding.note})" if finding.note else ""
        console.print(f"{finding.name:<12} {finding.bytes / 2**20:>10,.1f} MiB  {state}{note}")
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
    """What is found of the artifacts below a folder, and of those made with other settings."""
    opened: dict[str, Artifact] = {}
    places = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    for path in places:
        finding, artifact = _read(path, path.name)
        if artifact:
            opened[path.name] = artifact
        else:
            yield finding
    for stage, artifact in opened.items():
        yield Finding(stage, artifact.manifest.bytes, *_against_inputs(artifact, opened))
    for path in sorted((folder / VARIANTS).glob(f"*/{MANIFEST}")):
        stage = path.parent.name.rpartition("-")[0]
        yield _read(path.parent, stage, f"{VARIANTS}/{path.parent.name}")[0]


def _read(path: Path, stage: str, name: str = "") -> tuple[Finding, Artifact | None]:
    try:
        artifact = open_artifact(path, stage=stage, reread=True)
    except ArtifactError as error:
        return Finding(name or stage, 0, str(error)), None
    return Finding(name or stage, artifact.manifest.bytes), artifact


def _against_inputs(artifact: Artifact, opened: dict[str, Artifact]) -> tuple[str | None, str]:
    """A problem, and a note, from comparing what an artifact was made from with what is there."""
    manifest = artifact.manifest
    others = []
    for stage, digest in manifest.inputs.items():
        if stage not in opened:
            continue
        now = opened[stage].manifest
        if now.digest != digest:
            others.append(stage)
        elif now.seal != manifest.input_seals.get(stage) and now.created <= manifest.created:
            return f"the manifest of {stage} is not the one that it was made from", ""
    note = f"made from another {' and '.join(others)} than the one that is there" if others else ""
    return None, note
