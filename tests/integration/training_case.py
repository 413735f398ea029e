"""A tiny random Llama as a NeMo checkpoint and rows that it can learn, for tests that train."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.core.artifact import Artifact
from pipeline.data.dataset import Row, write_split
from pipeline.training.batches import TokenRows
from pipeline.training.job import Job, Trained
from pipeline.training.torchrun import AGENT, MARK
from tests.finetune_settings import finetune_settings
from tests.unit.model_folders import make_model_folder

MAX_POSITIONS = 128
STEPS = 20


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Questions of two to ten tokens; the answer to train on is the first one, counted on."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        question = draw.integers(10, 60, draw.integers(2, 11)).tolist()
        answer = [question[0] + i for i in range(1, int(draw.integers(3, 9)))]
        mask = [0] * len(question) + [1] * len(answer)
        rows.append(Row([], question + answer, mask, f"made:{number}"))
    return rows


def make_base(
    folder: Path,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    family: str = "Llama",
    attention_dropout: float = 0.0,
    odd_vocabulary: bool = False,
    hidden: int = 64,
    layers: int = 2,
) -> Path:
    """Write a nemo_checkpoint of a random model with heads of 16.

    odd_vocabulary: of a size that two ranks cannot share alike.
    """
    import torch
    import transformers

    from pipeline.training.nemo.models import import_hf
    from pipeline.training.nemo.session import nemo_session

    source = make_model_folder(folder / "source", "demo")
    vocab = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])
    config = getattr(transformers, f"{family}Config")(
        vocab_size=-(-(vocab + 16) // 64) * 64 + odd_vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=tied,
        attention_dropout=attention_dropout,
        sliding_window=None,  # Mistral's
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(source)
    with nemo_session():
        import_hf(source, folder / "base")
    return folder / "base"


def inputs(base: Path, folder: Path) -> dict[str, Artifact]:
    """The finetune stage's inputs: the base, and a dataset made in `folder`."""
    folder.mkdir()
    write_split(folder, "train", make_rows(120))
    write_split(folder, "validation", make_rows(11, seed=1))

    def artifact(path: Path, kind: str) -> Artifact:
        manifest: Any = SimpleNamespace(kind=kind, stage="made", digest="made")
        return Artifact(path, manifest)

    return {"import": artifact(base, "nemo_checkpoint"), "prepare": artifact(folder, "dataset")}


def make_job(base: Path, folder: Path, **changes: Any) -> Job:
    """A job of STEPS steps with its rows and results in `folder`, and changes of its settings."""
    for name, rows in (("train", make_rows(120)), ("validation", make_rows(11, seed=1))):
        TokenRows.of((r.input_ids, r.loss_mask) for r in rows).save(folder / name)
    fields: dict[str, Any] = {
        "hf": base / "hf",
        "weights": base,
        "train_rows": folder / "train",
        "validation_rows": folder / "validation",
        "scratch": folder / "scratch",
        "out": folder / "out",
        "seed": 3,
        "max_length": MAX_POSITIONS,
        "nodes": 1,
        "less_memory": "",
    }
    own = {name: changes.pop(name) for name in fields.keys() & changes.keys()}
    settings = finetune_settings(
        max_steps=STEPS, global_batch_size=8, micro_batch_size=4, learning_rate=5e-3,
        min_learning_rate=1e-4, warmup_steps=3, weight_decay=0.01, validate_every=8,
        checkpoint_every=3, rank=8, alpha=16,
    )  # fmt: skip
    return Job(settings=finetune_settings(settings, **changes), **fields | own)


def start_worker(job: Job, **variables: str) -> "subprocess.Popen[str]":
    """Train in a process of its own, which tells of each step on standard output.

    variables: of its environment, beyond this process's.
    """
    command = [sys.executable, "-m", "pipeline.training.workers", job.to_json()]
    environment = {**os.environ, "RANK": "0", "OMP_NUM_THREADS": "1", AGENT: str(os.getpid())}
    environment |= variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def train_apart(job: Job, **variables: str) -> Trained:
    """Train in a process of its own, in an environment with these variables."""
    with start_worker(job, **variables) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    lines = [x.removeprefix(MARK) for x in output.splitlines() if x.startswith(MARK)]
    return Trained.from_json(json.loads(lines[-1])["trained"])
