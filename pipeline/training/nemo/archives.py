"""Archives of NeMo 1.0 (`.nemo`): unpacked, and described as NeMo 2.0 describes a model.

    with unpacked(place, scratch) as folder:      # model_config.yaml and model_weights/
        for family, fields in candidates(folder): ...

Their description is plain data of other names; what NeMo 1.0 computes by it is what its
`build_transformer_config` makes of it. Nothing that it names is run. A key that is in neither table
below may decide what the model computes, and is refused unless it is switched off.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import DataError
from pipeline.models.families import FAMILIES
from pipeline.models.families.record import Family
from pipeline.models.other_forms import ARCHIVE_DESCRIPTION as DESCRIPTION
from pipeline.models.other_forms import ARCHIVE_WEIGHTS as WEIGHTS

_LARGEST = 2**20  # bytes of a description
# Fields of NeMo 2.0's configuration, by NeMo 1.0's names.
_FIELDS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_query_groups",
    "kv_channels": "kv_channels",
    "layernorm_epsilon": "layernorm_epsilon",
    "init_method_std": "init_method_std",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "share_embeddings_and_output_weights": "share_embeddings_and_output_weights",
    "max_position_embeddings": "seq_length",
    "rotary_percentage": "rotary_percent",
    "rotary_base": "rotary_base",
    "seq_len_interpolation_factor": "seq_len_interpolation_factor",
    "bias": "add_bias_linear",
    "qkv_bias": "add_qkv_bias",
    "window_size": "window_size",
    "position_embedding_type": "position_embedding_type",
}
# What counts where a description leaves the key out: NeMo 1.0's defaults.
_DEFAULTS = {
    "bias": True,
    "share_embeddings_and_output_weights": True,
    "position_embedding_type": "learned_absolute",
    "rotary_percentage": 1.0,
    "rotary_base": 10_000,
    "layernorm_epsilon": 1e-5,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
# NeMo 1.0's normalization → NeMo 2.0's, and whether weights are kept less one.
_NORMS = {
    "rmsnorm": ("RMSNorm", False),
    "layernorm": ("LayerNorm", False),
    "layernorm1p": ("LayerNorm", True),
}
# NeMo 1.0's activation → the function, and whether it gates another half.
_SILU, _SQUARED = "torch.nn.functional.silu", "nemo.collections.llm.fn.activation.squared_relu"
_ACTIVATIONS = {
    "fast-swiglu": (_SILU, True),
    "swiglu": (_SILU, True),
    "squared-relu": (_SQUARED, False),
}
# Families by normalization and activation, the likelier one first.
_FAMILIES = {
    ("rmsnorm", True): ("llama", "mistral", "qwen2"),
    ("layernorm1p", False): ("nemotron",),
}
# Keys whose one value is what every family here computes.
_REQUIRED: dict[str, Any] = {
    "mcore_gpt": True,
    "transformer_block_type": "pre_ln",
    "attention_type": "multihead",
    "normalize_attention_scores": True,
    "headscale": False,
}
# Keys that say how, where and in which precision a model was trained, or what it was trained on.
_HOW = re.compile(
    r"^(micro|global)_batch_size$|parallel|^encoder_seq_length$|^use_scaled_init_method$|"
    r"^apply_query_key_layer_scaling$|^(ffn_)?dropout$|^do_layer_norm_weight_decay$|"
    r"^make_vocab_size_divisible_by$|^(pre|post)_process$|^persist_layer_norm$|fusion|overlap|"
    r"^batch_p2p|p2p|^native_amp|^hysteresis$|^fp(8|16|32)|^bf16|^megatron_|^grad|^get_attention|"
    r"^apply_rope_fusion$|^seed$|^resume_from|^use_cpu_init|^onnx_safe$|^apex_|^sync_batch|"
    r"^activations_checkpoint|^num_micro_batches|^transformer_engine$|^ub_tp_comm|^use_flash|"
    r"^data$|^nsys|^optim$|^precision$|^target$|^nemo_version$|^tokenizer$|^save_|^restore_|^name$|"
    r"^inference$|^peft$|^answer_only_loss$|^virtual_|^reduce_amax$|^use_emha$|^dist_ckpt|"
    r"^num_moe_experts$|^defer_|^deterministic|^cpu_offloading|^sharp$|^tp_|^cp_|^freeze|"
    r"^mcore_customization|^hf_|^async_|^memory_profile|^rampup|^pipeline|^activation$|"
    r"^normalization$|^openai_gelu$|^onnx|^nccl|^chat|^sft$|^dpo$|^gc_|^tensorboard"
)
_OFF: tuple[object, ...] = (None, False, 0, 0.0, "", [], {})


@contextmanager
def unpacked(place: Path, scratch: Path) -> Iterator[Path]:
    """The folder of an archive: itself, or what a `.nemo` file holds, below `scratch` meanwhile.

    Raises:
        DataError: the file is no archive, is damaged, or holds something beside plain files.
    """
    if place.is_dir():
        yield place
        return
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    raise DataError(
                        f"{place} holds {member.name:.80}, which is no plain file within it: it is "
                        "no archive that NeMo writes"
                    )
                if _needed(path):
                    archive.extract(member, scratch, filter="data")
        yield scratch
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{place} cannot be unpacked ({type(error).__name__}): give a whole archive of NeMo"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _needed(path: PurePosixPath) -> bool:
    return path.name == DESCRIPTION or WEIGHTS in path.parts


def candidates(folder: Path) -> list[tuple[Family, dict[str, Any]]]:
    """Families that a description may be of, each with the fields of NeMo 2.0's configuration.

    Raises:
        DataError: it cannot be read, asks for what no family has, or has a key that is not known.
    """
    file = folder / DESCRIPTION
    content = _read(file)
    for name, wanted in _REQUIRED.items():
        if content.get(name, wanted) != wanted or (name == "mcore_gpt" and name not in content):
            found = content.get(name)
            raise _unlike(file, f"{name} is {found!r:.60}, and only {wanted!r} is read")
    norm, activation = str(content.get("normalization")), str(content.get("activation"))
    function, gated = _ACTIVATIONS.get(activation, ("", False))
    families = _FAMILIES.get((norm, gated)) if function else None
    if families is None:
        raise _unlike(file, f"normalization={norm:.40} with activation={activation:.40}")
    for name, value in content.items():
        if name not in (*_FIELDS, *_REQUIRED) and not _HOW.search(name) and value not in _OFF:
            raise _unlike(file, f"{name:.60}={value!r:.60} may change what it computes")
    if content.get("num_moe_experts"):
        raise _unlike(file, "it has experts")
    content = {**_DEFAULTS, **{k: v for k, v in content.items() if v is not None}}
    fields = {ours: content[theirs] for theirs, ours in _FIELDS.items() if theirs in content}
    kind, centered = _NORMS[norm]
    fields |= {
        "normalization": kind,
        "layernorm_zero_centered_gamma": centered,
        "activation_func": {"_target_": function},
        "gated_linear_unit": gated,
    }
    return [(FAMILIES[name], fields) for name in families]


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = file.read_bytes()
        found = yaml.safe_load(text) if len(text) <= _LARGEST else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{file} cannot be read ({why}): give an archive of NeMo 1.0") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{file} describes no model: give an archive of NeMo 1.0")
    return found


def _unlike(file: Path, what: str) -> DataError:
    return DataError(
        f"{file}: {what}: the models that are read compute as Llama, Mistral, Qwen2 and Nemotron "
        "do; convert it with NeMo's own scripts/checkpoint_converters, where you trust it"
    )
