"""Generated text → a small model made from nothing, with a record of where it came from.

Makes the small base model of the demo from nothing: a tokenizer, token rows, a Llama trained with
NeMo, and its export. The hf/ folder can be used as `model.path` as it is.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.finetune import AdapterConfig, FinetuneConfig, ParallelConfig
from pipeline.config.pretrain import PretrainConfig
from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.artifact import Artifact, Outcome, sha256_of_file
from pipeline.core.errors import ConfigError
from pipeline.core.stage import NEMO, Stage
from pipeline.training.corpus import (
    BOS,
    END,
    PAD,
    PARTS,
    Part,
    load_generator,
    make_rows,
    train_tokenizer,
)
from pipeline.training.job import Checkpoints, Job
from pipeline.training.progress import show_progress, write_loss_curve

STAGE = Stage(
    version=1,
    libraries=(*NEMO, "tokenizers", "jinja2"),
    optional_libraries=("transformer-engine", "triton"),
    less_memory="lower pretrain.micro_batch_size",
)


PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformer-engine", "tokenizers", "numpy")
CURVE_POINTS = 200  # of the loss curve, kept in provenance.json


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Train a tokenizer and a Llama from nothing, and export it as HF safetensors in bfloat16.

    Raises:
        ConfigError: sizes that do not fit one another. DataError: the generator cannot be used.
        PipelineError: the loss is not finite. ResourceError: memory ran out.
    """
    settings = config.pretrain
    check(settings)
    began = time.monotonic()
    hf, scratch = out / "hf", out / ".scratch"
    rows = scratch / "rows"
    if not (rows / "done").is_file():
        generator = load_generator(settings.generator)
        train_tokenizer(generator, hf, vocabulary=settings.vocabulary, seed=config.seed)
        write_shape(hf, settings)
        part = Part(
            generator=settings.generator,
            tokenizer=hf,
            seed=config.seed,
            tokens=settings.corpus_tokens // PARTS,
            conversation_share=settings.conversation_share,
        )
        make_rows(part, length=settings.sequence_length).save(rows)
        (rows / "done").touch()

    from pipeline.models.architecture import read_shape
    from pipeline.models.hf_model import write_weights
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.session import nemo_session

    job = _job(config, hf, rows, scratch / "checkpoints", out)
    done = len(Checkpoints(job.scratch, job.identity).curve())
    with nemo_session():
        from pipeline.training.nemo import trainer as nemo_training

        with show_progress(settings.steps, done) as report:
            trained = nemo_training.train(job, report)
        model = nemo.open_checkpoint(out)
        write_weights(hf, nemo.hf_tensors(model, read_shape(hf)), dtype="bfloat16")
    curve = trained.curve
    write_loss_curve(out, curve, title="Pretraining")
    tokens = settings.steps * settings.batch_size * (settings.sequence_length + 1)
    provenance = {
        "command": " ".join(["python", "-m", "pipeline", *sys.argv[1:]]),
        "seed": config.seed,
        "settings": settings.model_dump(mode="json"),
        "tokens": tokens,
        "seconds": round(time.monotonic() - began, 1),
        "loss_curve": [
            [p.step, round(p.loss, 4)] for p in curve[:: 1 + len(curve) // CURVE_POINTS]
        ],
        "final_loss": curve[-1].loss,
        "hardware": hardware.describe(),
        "packages": hardware.installed_versions(PACKAGES),
        "generator_sha256": sha256_of_file(settings.generator),
        "sha256": {f.name: sha256_of_file(f) for f in sorted(hf.iterdir())},
    }
    (hf / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    metrics = {
        "train_loss": curve[-1].loss,
        "steps": settings.steps,
        "tokens": tokens,
        "tokens_per_second": tokens * (1 - trained.resumed_from / settings.steps) / trained.seconds,
        "parameters": trained.trainable_parameters,
        "training_seconds": trained.seconds,
        "save_seconds": trained.save_seconds,
    }
    return Outcome("nemo_checkpoint", metrics, {"resumed_from_step": trained.resumed_from})


def check(settings: PretrainConfig) -> None:
    """Refuse sizes that do not fit one another, before anything heavy is imported.

    Raises:
        ConfigError: names the fields and what is allowed.
    """
    for whole, part in (
        ("hidden_size", "heads"),
        ("heads", "key_value_heads"),
        ("batch_size", "micro_batch_size"),
    ):
        if getattr(settings, whole) % getattr(settings, part):
            raise ConfigError(
                f"pretrain.{whole}={getattr(settings, whole)} must be a multiple of "
                f"pretrain.{part}={getattr(settings, part)}"
            )
    if settings.sequence_length > settings.max_positions:
        raise ConfigError(
            f"pretrain.sequence_length={settings.sequence_length} is over "
            f"pretrain.max_positions={settings.max_positions}: lower it"
        )
    if settings.warmup_steps >= settings.steps:
        raise ConfigError(
            f"pretrain.warmup_steps={settings.warmup_steps} must be below "
            f"pretrain.steps={settings.steps}"
        )
    needed = PARTS * (settings.sequence_length + 1)
    if settings.corpus_tokens < needed:
        raise ConfigError(f"pretrain.corpus_tokens={settings.corpus_tokens} is under {needed}")


def write_shape(folder: Path, settings: PretrainConfig) -> None:
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


def _job(config: Config, hf: Path, rows: Path, scratch: Path, out: Path) -> Job:
    settings = config.pretrain
    training = FinetuneConfig(
        method="sft",
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
        hf=hf,
        weights=None,
        train_rows=rows,
        validation_rows=None,
        scratch=scratch,
        out=out,
        seed=config.seed,
        max_length=settings.sequence_length,
        less_memory=f"lower pretrain.micro_batch_size (now {settings.micro_batch_size})",
    )
