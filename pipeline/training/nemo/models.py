"""Models of NeMo 2.0 on Megatron-Core: made from HF folders, saved, opened, and read back.

    with nemo_session():                           # training/nemo/session.py
        model_for(hf_folder, seq_length=512)       # a NeMo LlamaModel, Qwen2Model ...
        tokenizer_for(folder)                      # NeMo's tokenizer object; runs no model code
        import_hf(hf_folder, out)                  # HF folder -> out/weights out/context out/hf
        model = open_checkpoint(folder)            # back from disk, ready to compute
        model = open_checkpoint(base, adapter=a)   # with the LoRA or DoRA of a nemo_adapter on it
        logits(model, ids)                         # [tokens, vocabulary], float32, on the CPU
        hf_tensors(model, shape)                   # the weights by HF name
        trainer = connect(model)                   # builds the Megatron module of model_for
        load_weights(trainer, folder)              # weights from a checkpoint into it
        save_checkpoint(trainer, out)              # out/weights and out/context
        model_options()                            # what a Megatron config needs on this machine

A checkpoint is a genuine NeMo 2.0 folder: `weights/` (Megatron's distributed checkpoint) and
`context/` (the model's configuration and tokenizer), with `hf/` beside them: config.json and the
tokenizer files of the HF model, from which `open_checkpoint` builds the model again. It does not
read `context/`, whose io.json names code to call; that is there for NeMo's own tools. Weights are
float32 on a CPU and bfloat16 on a GPU. Knows nothing of training, stages or artifacts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.hardware import give_back_memory, threads_for
from pipeline.models.architecture import Llama3Rope, Shape, read_shape
from pipeline.models.expert_sizes import ExpertSizes
from pipeline.models.families import FAMILIES
from pipeline.models.files import copy_assets
from pipeline.models.hf_model import WeightReader
from pipeline.training.nemo import weight_map
from pipeline.training.nemo.patches.checkpoint_save import WRITERS
from pipeline.training.nemo.session import EXTRA_STATE, has_transformer_engine, on_gpu

if TYPE_CHECKING:
    import torch
    from nemo.collections.llm import GPTConfig, GPTModel
    from nemo.lightning import Trainer

    from pipeline.training.nemo.rope import Frequencies

ASSETS = "hf"  # the folder of config.json and tokenizer files inside a checkpoint
_READERS = 8


def checkpoint_dtype() -> str:
    """Precision of the checkpoints that are written on this machine."""
    return "bfloat16" if on_gpu() else "float32"


def checkpoint_files() -> int | None:
    """Number of files of a checkpoint that a rank writes in parallel; None: Megatron's default."""
    return WRITERS if on_gpu() else None


def model_options() -> dict[str, Any]:
    """Fields of a Megatron model's configuration that depend on this machine."""
    precision = _precision(checkpoint_dtype())
    if has_transformer_engine():
        return {
            **precision,
            # Reads the logits in their own precision and writes the gradient in their memory, where
            # Megatron's own makes copies in float32.
            "cross_entropy_fusion_impl": "te",
            # NeMo sets these in Llama's configurations, not in Qwen's and Mistral's.
            "apply_rope_fusion": True,
            "bias_activation_fusion": True,
            "bias_dropout_fusion": True,
        }
    from megatron.core.transformer.enums import AttnBackend

    return {
        **precision,
        "use_cpu_initialization": not on_gpu(),
        # Kernels of Transformer Engine and Apex, or ones that torch.compile would build first.
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "cross_entropy_loss_fusion": False,
        # The choice among Transformer Engine's kernels, which NeMo makes for Gemma.
        "attention_backend": AttnBackend.auto,
        # Apex's layer norm only.
        "persist_layer_norm": False,
        # It frees a tensor's storage in a way that needs pipeline parallelism on GPUs.
        "deallocate_pipeline_outputs": False,
    }


def _precision(dtype: str) -> dict[str, Any]:
    import torch

    kind = getattr(torch, dtype)
    return {"bf16": dtype == "bfloat16", "params_dtype": kind, "pipeline_dtype": kind}


def model_for(hf_folder: Path, *, seq_length: int | None = None, **options: Any) -> GPTModel:
    """A NeMo model of the shape in `hf_folder`/config.json, without weights yet.

    seq_length: longest sequence in tokens; the model's own maximum when None.
    options: fields of the Megatron configuration; they override those of the folder and machine.

    The vocabulary keeps exactly the embedding's rows, so that logits agree with HF's one by one;
    a tensor parallel size must divide it.
    """
    from pipeline.training.nemo.layers import needs_layers, use_layers
    from pipeline.training.nemo.rope import use_frequencies

    shape = read_shape(hf_folder)
    family = FAMILIES[shape.family]
    nemo, scaling = family.nemo, _scaling(hf_folder, shape)
    config_class, fields = _config(shape)
    fields |= {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "vocab_size": shape.vocab,
        "make_vocab_size_divisible_by": 1,
        "seq_length": seq_length or shape.max_positions,
        "rotary_base": shape.rope_theta,
        "rotary_percent": shape.rotary_share,
        "normalization": family.norm,
        "layernorm_epsilon": shape.norm_eps,
        "layernorm_zero_centered_gamma": family.zero_centered,
        "qk_layernorm": shape.layer.normed_heads,
        "share_embeddings_and_output_weights": shape.tied,
        "add_qkv_bias": shape.qkv_bias,
        "add_bias_linear": shape.output_bias or shape.mlp_bias,
        "activation_func": _activation(shape.activation),
        "gated_linear_unit": shape.layer.gated,
        "init_method_std": shape.initializer_range,
        "attention_dropout": shape.attention_dropout,
        "hidden_dropout": shape.hidden_dropout,
        "softmax_scale": shape.attention_scale,
        **_window(shape),
    }
    if nemo.two_bases:
        fields["rotary_base"] = (shape.window_rope_theta, shape.rope_theta)
    if shape.experts:
        fields |= _expert_fields(shape.experts)
    fields |= model_options() | options | _fusions(shape, scaling)
    config: GPTConfig = config_class(**fields)
    model = named(nemo.model)(config, tokenizer=tokenizer_for(hf_folder))
    if needs_layers(shape):
        use_layers(model, shape)
    if scaling is not None:
        for name, value in scaling.fields.items():
            setattr(config, name, value)
        use_frequencies(model, scaling)
    model.register_load_state_dict_post_hook(_without_extra_state)
    return model


def _without_extra_state(module: Any, keys: Any) -> None:
    """Checkpoints leave out Transformer Engine's extra state (see nemo_session): not an error."""
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(EXTRA_STATE)]


def _expert_fields(experts: ExpertSizes) -> dict[str, Any]:
    """Fields of the Megatron configuration that describe experts."""
    return {
        "num_moe_experts": experts.count,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.ffn,
        "moe_shared_expert_intermediate_size": experts.shared_ffn or None,
        "moe_layer_freq": 1 if all(experts.layers) else [int(has) for has in experts.layers],
        # Softmax over all experts keeps its values; over the chosen ones alone they add up to 1.
        "moe_router_pre_softmax": not experts.normalized,
        # Experts in modules of their own: see families/experts.py.
        "moe_grouped_gemm": False,
        "moe_permute_fusion": has_transformer_engine(),
        # The routing is kept as it was trained; a loss on the balance would depend on the batches.
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
    }


def _config(shape: Shape) -> tuple[type[GPTConfig], dict[str, Any]]:
    """The NeMo configuration of a family, and the fields that only this family has."""
    family = FAMILIES[shape.family]
    nemo, rope = family.nemo, shape.rope_scaling
    fields = dict(nemo.fields)
    for rule in family.numbers.values():
        if rule.nemo is not None:
            value = getattr(shape, rule.field)
            fields[rule.nemo] = None if value is None else value ** (1 / rule.power)
    if isinstance(rope, Llama3Rope) and rope.kind in nemo.rope_configs:
        fields |= {
            "scale_factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "old_context_len": rope.original_max_positions,
        }
        return named(nemo.rope_configs[rope.kind]), fields
    return named(nemo.config), fields


def _scaling(hf_folder: Path, shape: Shape) -> Frequencies | None:
    """Rotary frequencies that NeMo's configuration of the family does not compute itself."""
    rope = shape.rope_scaling
    if rope is None or rope.kind in FAMILIES[shape.family].nemo.rope_configs:
        return None
    from pipeline.training.nemo.rope import frequencies

    return frequencies(hf_folder, shape)


def _window(shape: Shape) -> dict[str, Any]:
    """Megatron-Core's fields of windows: tokens before and behind, and the layers that have one."""
    if shape.window is None:
        return {"window_size": None}
    layers = [int(windowed) for windowed in shape.window.layers]
    return {"window_size": (shape.window.size - 1, 0), "window_attn_skip_freq": layers}


def _activation(name: str) -> Callable[..., Any]:
    import torch.nn.functional as F
    from nemo.collections.llm.fn.activation import openai_gelu, squared_relu

    functions: dict[str, Callable[..., Any]] = {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "gelu_new": openai_gelu,
        "gelu_pytorch_tanh": openai_gelu,
        "relu": F.relu,
        "relu2": squared_relu,
    }
    return functions[name]


def _fusions(shape: Shape, scaling: Frequencies | None) -> dict[str, Any]:
    """Fused kernels that do not compute what the shape needs."""
    fields: dict[str, Any] = {}
    if shape.activation not in ("silu", "swish") or not shape.layer.gated:
        # Megatron-Core's fused GELU is the tanh approximation, whatever the function.
        fields["bias_activation_fusion"] = False
    scaled = scaling is not None and scaling.factor != 1.0
    if scaled:
        fields["apply_rope_fusion"] = False
    if scaled or shape.layer.normed_heads or shape.rotary_share != 1.0:
        # Its kernel rotates whole heads of a product, and nothing else may be done to them.
        fields["fused_single_qkv_rope"] = False
    return fields


def named(place: str) -> Any:
    """The class at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def tokenizer_for(folder: Path) -> Any:
    """NeMo's tokenizer object of an HF folder. Its context keeps a copy of `folder`'s files."""
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

    return AutoTokenizer(str(folder), trust_remote_code=False)


def import_hf(hf_folder: Path, out: Path) -> None:
    """Write an HF model as a NeMo 2.0 checkpoint: out/weights, out/context, out/hf.

    Tensors are read a few at a time, so that memory holds the model once, and by several threads:
    a single one that copies from a mapped file to a GPU is slower than the disk. NeMo's own
    importers hold the model twice, run the tokenizer's code and share one temporary folder.
    """
    _import_hf(hf_folder, out)
    # Trainer and model refer to each other: without this the model would stay beside the next one.
    give_back_memory()


def _import_hf(hf_folder: Path, out: Path) -> None:
    shape = read_shape(hf_folder)
    copy_assets(hf_folder, out / ASSETS)
    model = model_for(out / ASSETS, perform_initialization=False)
    trainer = connect(model)
    parameter = parameters_of(model, shape)
    with WeightReader(hf_folder) as source, ThreadPoolExecutor(threads_for(_READERS)) as pool:

        def fill(rule: weight_map.Rule) -> None:
            into = parameter(rule.megatron)
            into.copy_(rule.fuse(shape, (source.tensor(name).to(into.device) for name in rule.hf)))

        for _ in pool.map(fill, weight_map.rules(shape)):
            pass
    save_checkpoint(trainer, out)


def save_checkpoint(trainer: Trainer, out: Path) -> None:
    """Write the weights of a trainer's model to out/weights, its configuration to out/context."""
    from pipeline.training.nemo.context import write_context
    from pipeline.training.nemo.patches.checkpoint_safety import plain_write_errors

    with plain_write_errors():
        trainer.save_checkpoint(out, weights_only=True)
    if trainer.is_global_zero:
        write_context(trainer, out)
    trainer.strategy.barrier()


def open_checkpoint(folder: Path, *, adapter: Path | None = None) -> GPTModel:
    """The model in a nemo_checkpoint, in evaluation mode, with a nemo_adapter on it if given.

    With an adapter, `untrained` of the model has the base's weights in whose place the adapter has
    some of its own, by name. It is float32 on every machine: opened models are compared, folded and
    written, and rounding belongs at the end of that.
    """
    exact = _precision("float32")
    model = model_for(folder / ASSETS, perform_initialization=False, **exact)
    trainer = connect(model)
    load_weights(trainer, folder)
    if adapter is not None:
        from pipeline.training.nemo import lora

        shape = read_shape(folder / ASSETS)
        method, settings = lora.read_adapter(adapter)
        model.trainer = trainer
        lora.new_adapter(method, settings, shape)(model)
        saved = lora.saved_parameters(settings, shape)
        base = {
            name: parameter.detach().clone()
            for name, parameter in model.module.named_parameters()
            if name.endswith(saved)
        }
        load_weights(trainer, adapter, only=(".adapter.", *saved))
        model.untrained = base
        lora.restore_other_magnitudes(model, settings, shape)
    return model.eval()


def connect(model: GPTModel) -> Trainer:
    """Build the Megatron module of `model` on this machine. Returns its Lightning trainer."""
    import torch
    from lightning.pytorch.trainer.states import TrainerFn
    from nemo.lightning import MegatronStrategy, Trainer

    strategy = MegatronStrategy(
        ddp="pytorch",
        setup_optimizers=False,
        ckpt_save_optimizer=False,
        ckpt_async_save=False,  # it needs CUDA, and there is nothing to overlap with
        ckpt_torch_dist_multiproc=checkpoint_files(),
        ckpt_parallel_load=False,  # one rank reads everything anyway
    )
    trainer = Trainer(
        accelerator="gpu" if on_gpu() else "cpu",
        devices=1,
        num_nodes=1,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # One process needs no network port for its process group.
    strategy.store = torch.distributed.HashStore()
    trainer.state.fn = TrainerFn.TESTING  # no gradients: no distributed data parallel wrapper
    strategy.connect(model)
    strategy.setup_environment()
    model.configure_model()
    strategy.setup(trainer)
    return trainer


def load_weights(trainer: Trainer, folder: Path, *, only: Sequence[str] = ()) -> None:
    """Read a checkpoint's weights into the model of `connect`.

    only: parts of names; where there are any, the others keep the weights that they have.

    Raises:
        ArtifactError: a file of it is damaged, holds more than weights, or does not fit the model.
    """
    from pipeline.training.nemo.patches.checkpoint_safety import (
        check_checkpoint,
        one_line_refusals,
    )

    check_checkpoint(folder)
    strategy = trainer.strategy
    weights = folder / "weights"
    with one_line_refusals(folder):
        metadata = strategy.unwrapped_checkpoint_io.load_content_metadata(weights)
        state = strategy.megatron_parallel.sharded_state_dict(metadata=metadata)
        if only:
            state = {n: tensor for n, tensor in state.items() if any(part in n for part in only)}
        loaded = strategy.unwrapped_checkpoint_io.load_checkpoint(weights, {"state_dict": state})
        strategy.load_model_state_dict(loaded, strict=not only)


def parameters_of(model: GPTModel, shape: Shape) -> Callable[[str], torch.Tensor]:
    """Reads the Megatron module's parameters by the names of `weight_map`."""
    # A layer with an adapter keeps the weights that it wraps one level down.
    found = {n.replace(".to_wrap.", "."): p for n, p in model.module.named_parameters()}

    def parameter(name: str) -> torch.Tensor:
        return found[name if name in found else weight_map.local_name(shape, name)].detach()

    return parameter


def logits(model: GPTModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits after each of the token ids: [tokens, vocabulary], float32, on the CPU."""
    import torch

    device = next(model.module.parameters()).device
    tokens = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids), device=device)[None]
    with torch.inference_mode():
        output = model.module(tokens, positions, attention_mask=None)
    return output[0].float().cpu()


def hf_tensors(
    model: GPTModel, shape: Shape, *, base: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights by their HF names, one after another.

    base: those that the model had before an adapter came with weights of its own
        (finetune.adapter.modules_to_save).
    """
    tuned = parameters_of(model, shape)
    kept: dict[str, torch.Tensor] = getattr(model, "untrained", {}) if base else {}
    return weight_map.unfused(shape, lambda name: kept[name] if name in kept else tuned(name))
