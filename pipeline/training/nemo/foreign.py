"""NeMo checkpoints that others wrote: to Hugging Face folders, without running what they name.

    shape = describe(checkpoint, out)      # context/model.yaml → config.json, and the tokenizer
    write_hf(checkpoint, shape, out)       # weights, proven by logits

A checkpoint is a folder of NeMo 2.0, or an unpacked archive of NeMo 1.0 (archives.py).
`context/model.yaml` is read as plain data. It names classes and functions of NeMo, which are
compared with those of the families' records and never called. A family is the right one if NeMo's
configuration of the folder that we would write has every value that decides what the model
computes. Tensors are read by torch's reader for plain tensors, from an index that
`checkpoint_index` parses; other objects in the files (the state of Transformer Engine, of
optimizers and data loaders) are never read.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from dataclasses import fields as fields_of
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError
from pipeline.models.architecture import Shape, read_shape
from pipeline.models.families import FAMILIES
from pipeline.models.families.record import Family
from pipeline.models.files import read_json
from pipeline.training.nemo import archives
from pipeline.training.nemo.stored_weights import EMBEDDING, stored_weights

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.yaml"
_LARGEST = 2**20  # bytes of a description
_TARGET = "_target_"
_SAVE = (
    "save its tokenizer as a folder, run `python -m pipeline.training.from_nemo CHECKPOINT FOLDER "
    "--tokenizer TOKENIZER`, and give model.path=FOLDER"
)
# NeMo's names of activation functions → transformers'.
_ACTIVATIONS = {
    "torch.nn.functional.silu": "silu",
    "torch.nn.functional.gelu": "gelu",
    "torch.nn.functional.relu": "relu",
    "torch._C._nn.gelu": "gelu",
    "nemo.collections.llm.fn.activation.openai_gelu": "gelu_pytorch_tanh",
    "nemo.collections.llm.fn.activation.squared_relu": "relu2",
}
# Fields that say how, where and in which precision a model is trained, and not what it computes.
_HOW = re.compile(
    r"^_|fusion|^fused_|fp8|fp4|fp16|bf16|^params_dtype|dtype$|^recompute_|^cpu_offloading|"
    r"cuda_graph|^tp_comm|^tp_only|^cp_comm|_parallel|^parallel_output|_parallelism|pipeline|"
    r"overlap|p2p|_func$|_fn$|^init_method|^output_layer_init_method|^embedding_init_method|"
    r"initialization|init_model|^moe_(token_dispatcher|enable_deepep|deepep|permute|aux_loss|"
    r"z_loss|router_load_balancing|router_bias_update|router_force|router_fusion|router_padding|"
    r"input_jitter|per_layer|layer_recompute|extended|use_legacy|expert_capacity|pad_expert|"
    r"token_drop|shared_expert_overlap|hybridep)|^seq_length$|^vocab_size$|^make_vocab_size|"
    r"^should_pad_vocab|dropout$|backend$|^transformer_impl|^use_(te|cpu|transformer_engine|ring|"
    r"kitchen|fused|mamba|arbitrary)|rng|^inference_|^flash_decode|^generation_config|"
    r"^num_microbatches|^microbatch|^gradient_accumulation|^calculate_per_token|^persist_layer|"
    r"^memory_efficient|^timers|^barrier|^config_logger|^clone_scatter|^scatter_embedding|"
    r"^account_for|^batch_|^defer_|^delay_|^wgrad|^variable_seq|^distribute_saved|"
    r"^disable_|^deterministic|^symmetric_ar|^test_mode|^autocast|^enable_autocast|^gpt|"
    r"^mlp_chunks|^quant_recipe|^hetereogenous_dist|^mtp_loss|^attention_softmax_in_fp32|"
    r"^apply_query_key_layer_scaling|^nccl|^sharp|^async|^cross_entropy|^first_last"
)
_ABSENT: tuple[object, ...] = (None, False, 0, 0.0, "", [], {})


def describe(checkpoint: Path, out: Path, tokenizer: Path | None = None) -> Shape:
    """Write what a checkpoint's model is as config.json, with its tokenizer; in nemo_session.

    out: a new folder. tokenizer: a folder with its files; None: that of the checkpoint.

    Raises:
        DataError: the checkpoint cannot be read, or no family's record describes its model; names
            the first field that none has.
    """
    archived = (checkpoint / archives.DESCRIPTION).is_file()
    description = {} if archived else _description(checkpoint)
    found = archives.candidates(checkpoint) if archived else _candidates(checkpoint, description)
    weights = stored_weights(checkpoint)
    if not weights.prefix:
        raise DataError(f"{weights.folder} holds no embedding of NeMo's language models")
    out.mkdir(parents=True)
    _copy_tokenizer(checkpoint, description.get("tokenizer"), tokenizer, out)
    size, dtype = weights.tensors[weights.prefix + EMBEDDING]
    # A checkpoint of this pipeline says itself what NeMo's description leaves out.
    own = checkpoint / "hf" / "config.json"
    differences = []
    for family, fields in found:
        if fields is None:
            differences.append(
                f"its configuration is a {str(description['config'].get(_TARGET))[:100]}, which "
                "may have layers of its own"
            )
            continue
        try:
            config = (
                read_json(own, "remove its folder hf/")
                if own.is_file()
                else _hf_config(family, fields, size[0])
            )
        except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError):
            differences.append("a field of its configuration is of another kind than NeMo's")
            continue
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        try:
            shape = read_shape(out)
        except DataError as error:
            differences.append(str(error).removeprefix(f"{out}/config.json: "))
            continue
        different = next(_differences(out, fields), None)
        if different is None:
            return shape
        differences.append(different)
    raise DataError(
        f"{checkpoint}: {differences[0]}: write it as a Hugging Face folder with `nemo llm export`,"
        " on a machine where you trust it"
    )


def _candidates(
    checkpoint: Path, description: Mapping[str, Any]
) -> list[tuple[Family, dict[str, Any] | None]]:
    """Families whose class of NeMo 2.0 a description names, each with its configuration's fields;
    None for a configuration of another class.

    Raises:
        DataError: no family has the class.
    """
    named = str(description.get(_TARGET))
    families = [f for f in FAMILIES.values() if f.nemo.model.replace(":", ".") == named]
    if not families:
        known = sorted({f.nemo.model.partition(":")[2] for f in FAMILIES.values()})
        raise DataError(
            f"{checkpoint} is a {named.rpartition('.')[2][:60]}, which no record describes: a "
            f"{', '.join(known)} is read"
        )
    return [(family, _with_defaults(description["config"], family)) for family in families]


def write_hf(checkpoint: Path, shape: Shape, out: Path) -> dict[str, Any]:
    """Write the weights of a checkpoint into `out`, which has the rest of an HF folder.

    They keep their types. Gives the figures of the proof; runs inside nemo_session.

    Raises:
        DataError: a tensor is missing or has another shape.
        ProofFailed: the folder's logits differ from those of NeMo's model.
    """
    import torch

    from pipeline.models import hf_model
    from pipeline.models.logit_proof import ProofChain
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo import weight_map
    from pipeline.training.nemo.session import on_gpu

    read = _reader(checkpoint, shape)
    exact = {"bf16": False, "params_dtype": torch.float32, "pipeline_dtype": torch.float32}
    model = nemo.model_for(out, perform_initialization=False, **exact)
    nemo.connect(model)
    parameter = nemo.parameters_of(model, shape)
    for rule in weight_map.rules(shape):
        parameter(rule.megatron).copy_(read(rule.megatron))
    reference = partial(nemo.logits, model.eval())
    chain = ProofChain(shape, gpu=on_gpu(), reference=reference, name=str(checkpoint))
    del model, reference
    hf_model.write_weights(out, weight_map.unfused(shape, read), dtype=None)
    written = hf_model.load_model(out, dtype="float32")
    chain.require("hf_written", partial(hf_model.logits, written))
    return chain.proof


def _description(checkpoint: Path) -> dict[str, Any]:
    """context/model.yaml, as plain data.

    Raises:
        DataError: it is not there, or says nothing of a model.
    """
    import yaml

    file = checkpoint / "context" / MODEL_FILE
    if (checkpoint / "weights" / "adapter_metadata.json").is_file():
        raise DataError(f"{checkpoint} is an adapter: merge it into its base with NeMo first")
    try:
        text = file.read_bytes()
        found = yaml.safe_load(text) if len(text) <= _LARGEST else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(
            f"{file} cannot be read ({why}): it must be a checkpoint that NeMo 2.0 wrote"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise DataError(f"{file} describes no model: it must be a checkpoint that NeMo 2.0 wrote")
    return found


def _copy_tokenizer(checkpoint: Path, named: Any, given: Path | None, out: Path) -> None:
    """Copy the tokenizer's files: from a folder that is given, or the one in context/.

    Raises:
        DataError: the checkpoint names another tokenizer than a folder of its own.
    """
    from pipeline.models.files import TOKENIZER_FILES, copy_asset

    folder = given
    if folder is None:
        kind = str(named.get(_TARGET)) if isinstance(named, Mapping) else "none"
        name = str(named.get("pretrained_model_name")) if isinstance(named, Mapping) else ""
        context = (checkpoint / "context").resolve()
        folder = (context / name).resolve()
        if named is None:
            raise DataError(f"{checkpoint} names its tokenizer and does not hold it: {_SAVE}")
        if not name or not kind.endswith(".AutoTokenizer") or not folder.is_relative_to(context):
            raise DataError(f"{checkpoint} has a tokenizer of another kind ({kind[:80]}): {_SAVE}")
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{folder} has no tokenizer.json: {_SAVE}")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (folder / name).is_file():
            copy_asset(folder / name, out / name)


def _hf_config(family: Family, fields: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """What a config.json of the family would say of these fields of a NeMo configuration."""
    keys = family.keys

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(name)
        return default if value is None else value

    heads, base = field("num_attention_heads"), field("rotary_base", 10_000)
    config: dict[str, Any] = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        "hidden_size": field("hidden_size"),
        "intermediate_size": field("ffn_hidden_size", 4 * field("hidden_size", 0)),
        "num_hidden_layers": field("num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("num_query_groups", heads),
        "head_dim": field("kv_channels", field("hidden_size", 0) // (heads or 1)),
        "max_position_embeddings": field("seq_length"),
        "vocab_size": vocabulary,
        "rope_theta": base[-1] if isinstance(base, list) else base,
        keys.norm_eps: field("layernorm_epsilon"),
        "tie_word_embeddings": field("share_embeddings_and_output_weights", True),
        keys.activation: _ACTIVATIONS.get(_name(field("activation_func")), keys.activation_default),
        "initializer_range": field("init_method_std", keys.initializer_default),
        "attention_dropout": field("attention_dropout", 0.0),
        "partial_rotary_factor": field("rotary_percent", 1.0),
    }
    biased = bool(field("add_bias_linear", False))
    for key in (keys.output_bias, keys.mlp_bias):
        if key:
            config[key] = biased
    if keys.attention_bias:
        config[keys.attention_bias] = biased or bool(field("add_qkv_bias", False))
    for name, rule in family.numbers.items():
        if rule.nemo and fields.get(rule.nemo) is not None:
            config[name] = fields[rule.nemo]
    window = field("window_size")
    if family.window and isinstance(window, list) and window:
        config["sliding_window"] = window[0] + 1
        if family.window.switch:
            config[family.window.switch] = True
    elif family.window and family.window.default is not None:
        config["sliding_window"] = None
    if "old_context_len" in fields:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(field("scale_factor", 8)),
            "low_freq_factor": float(field("low_freq_factor", 1)),
            "high_freq_factor": float(field("high_freq_factor", 4)),
            "original_max_position_embeddings": field("old_context_len"),
        }
    elif field("seq_len_interpolation_factor"):
        config["rope_scaling"] = {
            "rope_type": "linear",
            "factor": field("seq_len_interpolation_factor"),
        }
    return config


def _name(value: Any) -> str:
    """The name of a function: of one that a description names, or of one of ours."""
    if isinstance(value, Mapping):
        return str(value.get(_TARGET))
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


def _differences(folder: Path, fields: Mapping[str, Any]) -> Iterator[str]:
    """Fields that decide what the model computes, and that are not those of the folder's model."""
    from pipeline.training.nemo import models as nemo

    ours = nemo.model_for(folder).config
    layers = type(ours).__dataclass_fields__["transformer_layer_spec"].default
    heads, hidden = ours.num_attention_heads, ours.hidden_size
    derived = {"kv_channels": hidden // heads, "num_query_groups": heads,
               "ffn_hidden_size": 4 * hidden}  # fmt: skip
    for name, value in sorted(fields.items()):
        expected = getattr(ours, name, None)
        if name == "activation_func":
            known = _ACTIVATIONS.get(_name(value))
            same = known is not None and known == _ACTIVATIONS.get(_name(expected))
        elif name == "transformer_layer_spec":
            same, expected = _name(value) == _name(layers), _name(layers)
        elif _HOW.search(name):
            continue
        elif value is None and name in derived:
            same = expected == derived[name]
        else:
            same = _plain(value) == _plain(expected) or (value in _ABSENT and expected in _ABSENT)
        if not same:
            shown = _name(value) if isinstance(value, Mapping) else value
            yield f"its {name} is {shown!r:.80}, and the models that are read have {expected!r:.80}"


def _with_defaults(given: Mapping[str, Any], family: Family) -> dict[str, Any] | None:
    """The fields of a configuration with NeMo's defaults of its class for those that it leaves out.

    None: the class is none of NeMo's whose models are built as those of the family's class are.
    """
    from pipeline.training.nemo import models as nemo

    module, _, name = str(given.get(_TARGET)).rpartition(".")
    for place in (*family.nemo.rope_configs.values(), family.nemo.config):
        ours = nemo.named(place)
        found = getattr(sys.modules[ours.__module__], name, None) if name.isidentifier() else None
        if (
            module == ours.__module__
            and isinstance(found, type)
            and issubclass(found, ours)
            and found.configure_model is ours.configure_model  # type: ignore[attr-defined]
        ):
            defaults = {f.name: f.default for f in fields_of(found) if f.default is not MISSING}
            return {**defaults, **given}
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, int | float) else str(value)


def _reader(checkpoint: Path, shape: Shape) -> Callable[[str], torch.Tensor]:
    """Reads a checkpoint's tensors by the names of `weight_map`."""
    from pipeline.training.nemo import weight_map

    weights = stored_weights(checkpoint)
    stored, prefix = weights.tensors, weights.prefix
    # Megatron-Core keeps a tensor of all layers in one, layer by layer, where the layers are alike.
    places: dict[str, tuple[str, int | None]] = {}
    for rule in weight_map.rules(shape):
        name, layer = prefix + rule.megatron, None
        if found := re.match(r"(.*decoder\.layers\.)(\d+)\.(.*)", name):
            whole = found[1] + found[3]
            name, layer = (whole, int(found[2])) if whole in stored else (name, None)
        if name not in stored:
            raise DataError(f"{weights.folder} has no {name}: another layer than the model's")
        size, _ = stored[name]
        if layer is not None and size[0] != shape.layers:
            raise DataError(f"{weights.folder} has {size[0]} layers of {name}")
        places[rule.megatron] = (name, layer)
    tensors = weights.read(sorted({name for name, _ in places.values()}))

    def read(name: str) -> torch.Tensor:
        whole, layer = places[name]
        return tensors[whole] if layer is None else tensors[whole][layer]

    return read
