"""Generated text → a small model made from nothing, with a record of where it came from.

A tokenizer, token rows, a Llama trained with NeMo by the package's own training code, and its
export as HF safetensors.
"""

import json
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.config.defaults import default_config
from pipeline.config.finetune import AdapterConfig, FinetuneConfig, ParallelConfig
from pipeline.core import hardware
from pipeline.core.artifact import sha256_of_file, sha256_of_json
from pipeline.core.errors import ConfigError
from pipeline.models.architecture import read_shape
from pipeline.models.checks import check_folder
from pipeline.models.files import WEIGHTS, copy_assets
from pipeline.training.job import Checkpoints, Job
from pipeline.training.progress import show_progress, write_loss_curve
from tools.pretrain.corpus import (
    BOS,
    END,
    PAD,
    PARTS,
    Part,
    load_generator,
    make_rows,
    train_tokenizer,
)
from tools.pretrain.settings import Settings

PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformer-engine", "tokenizers", "numpy")
CURVE_POINTS = 200  # of the loss curve, kept in provenance.json
RECORD = "provenance.json"
WORK = ".work"  # below the output folder, while it is made


def make(settings: Settings, out: Path, *, command: str) -> dict[str, Any]:
    """Train a tokenizer and a Llama, and write out/hf, in bfloat16, with the loss curve beside it.

    With settings.start, train that model on, with its tokenizer.

    Resumes from what a killed run with the same settings left. command: for the record. Returns
    the record that is written as hf/provenance.json.

    Raises:
        ConfigError: out/hf exists. DataError: the generator cannot be used.
        PipelineError: the loss is not finite. ResourceError: memory ran out.
    """
    if (out / "hf").exists():
        raise ConfigError(f"{out / 'hf'} exists: choose another folder, or remove it")
    generator = load_generator(settings.generator)
    identity = {**settings.model_dump(mode="json"), "text": sha256_of_file(settings.generator)}
    if settings.start:
        check_folder(settings.start)
        identity["weights"] = sha256_of_file(settings.start / WEIGHTS)
    work = out / WORK / sha256_of_json(identity)[:16]
    made = _make(settings, generator, work, command)
    (work / "loss_curve.png").replace(out / "loss_curve.png")
    (work / "hf").rename(out / "hf")
    shutil.rmtree(out / WORK)
    return made


def _make(settings: Settings, generator: ModuleType, work: Path, command: str) -> dict[str, Any]:
    began = time.monotonic()
    hf, rows = work / "hf", work / "rows"
    if not (rows / "done").is_file():
        if settings.start:
            copy_assets(settings.start, hf)
        else:
            train_tokenizer(generator, hf, vocabulary=settings.vocabulary, seed=settings.seed)
            write_shape(hf, settings)
        part = Part(
            generator=settings.generator,
            tokenizer=hf,
            seed=settings.seed,
            tokens=settings.corpus_tokens // PARTS,
            conversation_share=settings.conversation_share,
        )
        make_rows(
            part,
            length=settings.sequence_length,
            least_occurrences=settings.least_occurrences,
        ).save(rows)
        (rows / "done").touch()

    from pipeline.models.hf_model import write_weights
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.session import nemo_session

    job = _job(settings, work)
    done = len(Checkpoints(job.scratch, job.identity).curve())
    with nemo_session():
        from pipeline.training.nemo import trainer as nemo_training

        if settings.start and not (work / "start" / "context").is_dir():
            nemo.import_hf(settings.start, work / "start")
        with show_progress(settings.steps, done) as report:
            curve = nemo_training.train(job, report).curve
        model = nemo.open_checkpoint(work)
        write_weights(hf, nemo.hf_tensors(model, read_shape(hf)), dtype="bfloat16")
    write_loss_curve(work, curve, title="Pretraining")
    provenance = {
        "command": command,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json", exclude={"seed"}),
        "tokens": settings.steps * settings.batch_size * (settings.sequence_length + 1),
        "seconds": round(time.monotonic() - began, 1),
        "loss_curve": [
            [p.step, round(p.loss, 4)] for p in curve[:: 1 + len(curve) // CURVE_POINTS]
        ],
        "final_loss": curve[-1].loss,
        "hardware": hardware.describe(),
        "packages": hardware.installed_versions(PACKAGES),
        "generator_sha256": sha256_of_file(settings.generator),
        "sha256": {f.name: sha256_of_file(f) for f in sorted(hf.iterdir()) if f.name != RECORD},
    }
    if settings.start:
        # What the model to train on from was made with, if it came from here.
        record = settings.start / RECORD
        made_before = json.loads(record.read_text()) if record.is_file() else {}
        provenance["start"] = {
            **made_before,
            "sha256": {WEIGHTS: sha256_of_file(settings.start / WEIGHTS)},
        }
    (hf / RECORD).write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    return provenance


def write_shape(folder: Path, settings: Settings) -> None:
    """Write config.json and generation_config.json of the Llama, as transformers reads them."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    number = {token["content"]: token["id"] for token in tokens}
    ids = {
        "bos_token_id": number[BOS],
        "eos_token_id": number[END],
        "pad_token_id": number[PAD],
    }
    shape: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": settings.vocabulary,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.ffn_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.key_value_heads,
        "head_dim": settings.hidden_size // settings.heads,
        "max_position_embeddings": settings.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **ids,
    }
    for name, value in (("config.json", shape), ("generation_config.json", ids)):
        (folder / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _job(settings: Settings, work: Path) -> Job:
    training = FinetuneConfig(
        method="sft",
        objective="sft",
        preference=default_config({}).finetune.preference,
        adapter=AdapterConfig(rank=1, alpha=1, dropout=0.0),
        parallel=ParallelConfig(processes=1, tensor=1, pipeline=1, context=1),
        max_steps=settings.steps,
        global_batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        pack_length=None,
        precision="bf16",
        learning_rate=settings.learning_rate,
        min_learning_rate=settings.learning_rate / 10,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        clip_grad=1.0,
        validate_every=settings.steps,
        checkpoint_every=settings.checkpoint_every,
        patches="all",
    )
    return Job(
        settings=training,
        hf=work / "hf",
        weights=work / "start" if settings.start else None,
        train_rows=work / "rows",
        validation_rows=None,
        scratch=work / "checkpoints",
        out=work,
        seed=settings.seed,
        max_length=settings.sequence_length,
        less_memory=f"lower --micro-batch-size (now {settings.micro_batch_size})",
    )
