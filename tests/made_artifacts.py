"""Artifacts with made-up figures, for tests of what comes after the stages."""

import json
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.artifact import (
    Artifact,
    Manifest,
    hash_files,
    open_artifact,
    write_manifest,
)

ACCURACY = {"base": 0.02, "tuned": 0.93, "fp8": 0.92, "int8_sq": 0.915, "int4_awq": 0.89}
SERVED = (1.0,) * 117 + (0.0,) * 13
TRAINING = {
    "method": "dora",
    "objective": "sft",
    "max_steps": 7,
    "global_batch_size": 16,
    "learning_rate": 0.002,
}

LENGTH = {
    "length": "7 steps of 16 rows = 0.12 epochs of 900 rows",
    "kept": "step 7 of 7 was kept: it is the last",
}


def make_artifact(
    folder: Path,
    stage: str,
    kind: str,
    *,
    files: Mapping[str, str | bytes] | None = None,
    metrics: Mapping[str, float] | None = None,
    inputs: Mapping[str, Artifact] | None = None,
    config: Mapping[str, Any] | None = None,
    proof: Mapping[str, Any] | None = None,
    failure: str | None = None,
    seconds: float = 2.5,
    created: float | None = None,
    name: str = "",
    environment: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write and open folder/stage, or folder/name."""
    place = folder / (name or stage)
    for name, content in (files or {"data.txt": stage}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
    manifest = Manifest(
        kind=kind,
        stage=stage,
        fingerprint="0" * 64,
        config=config or {"seed": 1, stage: {"setting": "x"}},
        inputs={name: artifact.manifest.digest for name, artifact in (inputs or {}).items()},
        input_seals={name: artifact.manifest.seal for name, artifact in (inputs or {}).items()},
        files=hash_files(place),
        measured=(),
        metrics={name: float(value) for name, value in (metrics or {}).items()},
        proof=proof or {},
        failure=failure,
        versions={"stage": 1},
        libraries={},
        code={"commit": "c0ffee" * 6 + "abcd", "changed": False},
        environment=environment or {},
        seconds=seconds,
        peak_memory_bytes=700 * 2**20,
        created=datetime.fromtimestamp(created or time.time(), UTC).isoformat(timespec="seconds"),
    )
    write_manifest(place, manifest)
    return open_artifact(place, stage=stage)


def make_chain(
    folder: Path,
    *,
    accuracy: Mapping[str, float] = ACCURACY,
    format: str = "fp8",
    failure: str | None = None,
    served: Sequence[float] = SERVED,
    first_question: int = 0,
    built: Mapping[str, str | bytes] | None = None,
) -> dict[str, Artifact]:
    """The artifacts of a whole run, by stage.

    format: of the exported weights. served: the scores of the engine's answers.
    first_question: number of the first test question, to make another test set.
    built: files of the engine, in place of made-up ones.
    """
    made: dict[str, Artifact] = {}

    def add(stage: str, kind: str, inputs: str = "", **content: Any) -> None:
        read = {name: made[name] for name in inputs.split()}
        made[stage] = make_artifact(folder, stage, kind, inputs=read, **content)

    scores = {
        name: {"exact_match": {"value": value, "low": value - 0.02, "high": value + 0.02}}
        for name, value in accuracy.items()
    }
    answers = [
        {
            "question": f"How do I close account {number}?",
            "expected": f"Open settings and choose close, number {number}.",
            "answers": {
                "base": "I like the sea.",
                "tuned": f"Open settings and choose close, number {number}.",
            },
            "cut": [],
        }
        for number in range(9)
    ]
    add("prepare", "dataset", metrics={"train_rows": 900, "test_rows": 130},
        config={"seed": 3, "data": {"folder": "data/harbor"}},
        files={"statistics.json": "{}", "samples.html": "<b>hi</b>"})  # fmt: skip
    add("import", "nemo_checkpoint", metrics={"logits/cosine": 0.9999})
    add("finetune", "nemo_adapter", "prepare import", seconds=61.0,
        metrics={"train/loss": 0.02}, files={"loss.png": png()},
        config={"seed": 3, "finetune": TRAINING}, proof=LENGTH)  # fmt: skip
    add("merge", "hf_checkpoint", "import finetune", metrics={"logits/cosine": 0.9999},
        config={"model": {"name": "harbor-base"}})  # fmt: skip
    add("quantize", "quantized", "merge prepare", metrics={"cosine/fp8": 0.999})
    report = {
        "report.json": json.dumps({"method": "adapter", "models": scores}),
        "report.md": "# Report",
    }
    report["predictions.jsonl"] = "\n".join(map(json.dumps, answers))
    add("evaluate", "report", "prepare merge quantize", seconds=40.0, failure=failure,
        metrics={f"exact_match/{name}": value for name, value in accuracy.items()},
        files={**report, "accuracy.png": png()})  # fmt: skip
    add("export", "exported", "merge quantize", metrics={"cosine/lowest": 0.998},
        proof={"format": format})  # fmt: skip
    engine = {"runtime": "onnxruntime", "version": "0.12.2", "precision": "int8"}
    add(
        "build",
        "engine",
        "merge export",
        metrics={"engine_mib": 4.1},
        files=built or {"engine.json": json.dumps(engine), "model.onnx": b"\0" * 4_000_000},
    )
    rates = {f"tokens_per_second/at_{load}": 210.0 * load for load in (1, 4, 16)}
    share = sum(served) / len(served)
    accuracy = {**engine, "sampling": {"temperature": 0.0}, "questions": len(served)}
    accuracy["exact_match"] = {"value": share, "low": share - 0.02, "high": share + 0.02}
    replies = [
        json.dumps({"id": f"question {number}", "metrics": {"exact_match": score}, "slices": []})
        for number, score in enumerate(served, start=first_question)
    ]
    add("benchmark", "benchmark", "build prepare evaluate",
        metrics={**rates, "exact_match/served": share},
        files={"report.json": json.dumps({"served": accuracy}), "latency.png": png(),
               "answers.jsonl": "\n".join(replies)})  # fmt: skip
    return made


def png() -> bytes:
    """A small grey picture."""
    size = 64
    rows = b"".join(b"\0" + bytes([200] * size) for _ in range(size))

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
