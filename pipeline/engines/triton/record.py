"""What the pipeline must know of Triton as an engine (engines/record.py)."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.engine import EngineConfig
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError, MissingRuntime
from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.description import FILE, Description
from pipeline.engines.record import BuildJob, EngineRecord, Hosted, size_mib, take_tokenizer
from pipeline.engines.triton import arguments

if TYPE_CHECKING:
    from pipeline.core.artifact import Outcome

# Of the repository's layout and of the models' inputs and outputs.
LAYOUT = "1"
NOT_HOSTED = frozenset({"adapters", "embeddings", "scores"})
# Backends whose engine runs where the repository is taken to.
ELSEWHERE = ("tensorrtllm", "vllm")


def _hosts(engine: EngineConfig) -> Hosted:
    backend = arguments.read(engine).backend
    if engine.lora_rank:
        raise ConfigError(
            f"engine.lora_rank={engine.lora_rank} has no effect with engine=triton, whose models "
            "take no adapters: leave it out, or serve with engine=hf, vllm or trtllm"
        )
    return Hosted(arguments.hosted(engine), here=backend not in ELSEWHERE)


def _check(engine: EngineConfig) -> None:
    _hosts(engine)


def _build(job: BuildJob, out: Path) -> "Outcome":
    """Build the engine behind it, inside a model repository."""
    from pipeline.core.artifact import Outcome
    from pipeline.engines.kserve.contract import Facts
    from pipeline.engines.triton import repository

    settings, inner = arguments.read(job.engine), job.behind
    assert inner, "stage=build says which engine it chose"
    inside = replace(job, record=inner, engine=_hosts(job.engine).engine)
    root = out / repository.REPOSITORY
    slots = job.engine.max_batch_size
    if settings.backend == "python":
        features = inner.features - NOT_HOSTED
        facts = Facts(features, job.engine.max_input_len, job.engine.max_seq_len)
        place = repository.write_python(root, settings, facts, slots) / "engine"
        place.mkdir()
        made = inner.build(inside, place)
        for part in ("", arguments.STREAM):
            folder = root / (settings.model + part) / repository.VERSION
            take_tokenizer(job.merged, _made(folder / "tokenizer"))
    elif settings.backend == "onnxruntime":
        place = _made(root / settings.model / repository.VERSION)
        made = inner.build(inside, place)
        repository.write_onnxruntime(root, settings)
    elif settings.backend == "vllm":
        given = inner.settings(job.profile, job.checkpoint, inside.engine)["arguments"]
        repository.write_vllm(root, settings, job.checkpoint, given)
        made = Outcome("engine", {}, {"arguments": given})
    else:
        made = _tensorrtllm(inside, root, settings, slots)
    chat = take_tokenizer(job.merged, out)
    more = {"backend": settings.backend, "model": settings.model, "server": list(settings.server)}
    described = job.describe(chat, {**more, "engine": inner.name})
    _describe(described, root, settings, out)
    proof = {**more, "behind": inner.name, **made.proof}
    return Outcome("engine", {**made.metrics, "engine_mib": size_mib(out)}, proof)


def _describe(described: Description, root: Path, settings: Any, out: Path) -> None:
    """engine.json: of the engine inside, where it was proven to be of this machine."""
    inside = sorted(root.rglob(FILE))
    if settings.backend in ELSEWHERE:
        described = replace(described, memory_bytes=0)
    elif inside:
        described = replace(described, precision=Description.read(inside[0].parent).precision)
    # What it is bound to is said by the engine inside, and compared there.
    replace(described, runtime="triton", version=LAYOUT, hardware={}).write(out)


def _tensorrtllm(job: BuildJob, root: Path, settings: Any, slots: int) -> "Outcome":
    """The ensemble; the engine itself where TensorRT-LLM is, else what builds it there."""
    from pipeline.core.artifact import Outcome
    from pipeline.engines.triton import repository
    from pipeline.engines.trtllm import build as trtllm
    from pipeline.models.chat.renderer import Chat

    place = repository.write_tensorrtllm(root, settings, slots, Chat.load(job.merged).stop_ids)
    for part in (arguments.PRE, arguments.POST):
        folder = root / (settings.model + part) / repository.VERSION
        take_tokenizer(job.merged, _made(folder / "tokenizer"))
    qnemo = job.checkpoint
    if trtllm.missing() is None:

        def show(line: str) -> None:
            get_console().print(line, markup=False)

        made = trtllm.build(qnemo, place.parent, job.engine, show)
        return Outcome("engine", {}, made)
    checkpoint = root.parent / "checkpoint"
    repository.link_files(qnemo, checkpoint)
    command = trtllm.build_command(qnemo, place, job.engine)
    command[command.index(str(qnemo))] = "checkpoint"
    command[command.index(str(place))] = str(place.relative_to(root.parent))
    script = root.parent / "build-engine.sh"
    script.write_text(
        "#!/bin/sh\n# Builds the engine into the repository, in a container with TensorRT-LLM.\n"
        f'set -eu\ncd "$(dirname "$0")"\n{shlex.join(command)}\n'
    )
    get_console().print(
        f"the repository has no engine yet, as TensorRT-LLM is not here: run {script.name} of this "
        f"artifact in {trtllm.IMAGE}",
        soft_wrap=True,
        markup=False,
    )
    return Outcome("engine", {}, {"command": shlex.join(command), "engine": "not built here"})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    from pipeline.engines.triton import repository
    from pipeline.engines.triton.engine import TritonEngine
    from pipeline.engines.triton.server import find

    backend = description.settings["backend"]
    if backend not in ("python", "tensorrtllm"):
        raise MissingRuntime(
            f"{folder} is a repository for Triton's backend {backend}, which takes no token ids, "
            "so it cannot stand behind this server: start it with tritonserver (docs/triton.md), "
            f"or serve with engine={description.settings['engine']}"
        )
    if lack := find().missing(backend):
        raise MissingRuntime(f"{lack}: open {folder} in NVIDIA's container of Triton")
    inside = folder / repository.REPOSITORY / (description.settings["model"] + arguments.TOKENS)
    engine = inside / repository.VERSION / "engine"
    if not engine.is_dir() and backend == "tensorrtllm":
        raise MissingRuntime(f"{engine} does not exist: run {folder / 'build-engine.sh'} first")
    return TritonEngine(folder, description, max_queue=max_queue)


TRITON = EngineRecord(
    name="triton",
    component=Component(
        name="engine/triton",
        version=1,
        libraries=("grpcio", "protobuf", "numpy", "onnx"),
        modules=(
            "pipeline.engines.triton.record",
            "pipeline.engines.triton.arguments",
            "pipeline.engines.triton.__main__",
            "pipeline.engines.triton.engine",
            "pipeline.engines.triton.pbtxt",
            "pipeline.engines.triton.repository",
            "pipeline.engines.triton.server",
        ),
    ),
    version=lambda: LAYOUT,
    open=_open,
    devices=("gpu", "cpu"),
    hosts=_hosts,
    check_settings=_check,
    build=_build,
    own_process=True,
    needs_build=True,
    package="nvidia-pytriton",
    remedy="make setup EXTRA=triton",
)
