"""Results of earlier benchmarks on this machine, by the name of the profile."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.core.artifact import Manifest, kept
from pipeline.core.errors import ArtifactError, DataError
from pipeline.core.hardware import Machine
from pipeline.engines.description import Description
from pipeline.engines.memory import Decoder, read_decoder
from pipeline.engines.profile import profile_name

RATE = "output_tokens_per_second/"  # prefix of a metric of stage=benchmark: one for each load


def measured_here(artifacts: Path, model: Decoder, machine: Machine) -> dict[str, float]:
    """Tokens a second at the best load, for each profile measured with a model of this size.

    Benchmarks on other hardware, of other sizes, or of deleted engines do not count, nor those with
    another load than the newest: rates of other numbers of requests, or of longer answers, say
    nothing about which profile is faster.
    """
    merged = dict(kept(artifacts, "merge"))
    built = dict(kept(artifacts, "build"))
    sizes = {manifest.digest: _sizes(folder) for folder, manifest in merged.items()}
    engines = {manifest.digest: (folder, manifest) for folder, manifest in built.items()}
    found: dict[str, float] = {}
    measured = [manifest for _, manifest in kept(artifacts, "benchmark")]
    newest = max(measured, key=lambda manifest: manifest.created, default=None)
    for manifest in measured:
        if newest is None or _load(manifest) != _load(newest):
            continue
        folder, engine = engines.get(manifest.inputs.get("build", ""), (None, None))
        if folder is None or engine is None or not _same(manifest, machine):
            continue
        if sizes.get(engine.inputs.get("merge", "")) != model:
            continue
        rate = max((v for k, v in manifest.metrics.items() if k.startswith(RATE)), default=0.0)
        try:
            name = name_of(Description.read(folder))
        except ArtifactError:
            continue
        found[name] = max(rate, found.get(name, 0.0))
    return found


def _load(manifest: Manifest) -> object:
    """The settings of the load that was measured."""
    return manifest.config.get("benchmark")


def name_of(engine: Description) -> str:
    """The name of a built engine's profile."""
    return profile_name(
        engine.runtime, engine.precision, engine.tensor_parallel, lora=engine.lora_rank > 0
    )


def _sizes(merged: Path) -> Decoder | None:
    try:
        return read_decoder(merged)
    except DataError:
        return None


def _same(manifest: Manifest, machine: Machine) -> bool:
    """Whether the benchmark ran on hardware like this."""
    there: Mapping[str, object] = manifest.environment.get("hardware", {})
    gpus = [gpu["name"] for gpu in there.get("gpus", ())]  # type: ignore[attr-defined]
    here = (machine.cpu, machine.cores, [gpu.name for gpu in machine.gpus])
    return (there.get("cpu"), there.get("cores"), gpus) == here
