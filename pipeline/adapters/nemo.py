"""Models of NeMo 2.0 on Megatron-Core: made from HF folders, saved, opened, and read back.

    with nemo_session():                           # once a process, around everything below
        model_for(hf_folder, seq_length=512)       # a NeMo LlamaModel, Qwen2Model or MistralModel
        tokenizer_for(folder)                      # NeMo's tokenizer object; runs no model code
        import_hf(hf_folder, out)                  # HF folder -> out/weights out/context out/hf
        model = open_checkpoint(folder)            # back from disk, ready to compute
        model = open_checkpoint(base, adapter=a)   # with the LoRA or DoRA of a nemo_adapter on it
        logits(model, ids)                         # [tokens, vocabulary], float32, on the CPU
        fold_adapter(model)                        # the adapter becomes part of the weights
        hf_tensors(model, shape)                   # the weights by HF name
        adapter_layers(model)                      # the adapter's matrices by layer
        peft_tensors(shape, layers)                # the same by the PEFT library's names
        trainer = connect(model)                   # a model of model_for, made real here
        load_weights(trainer, folder)              # weights from a checkpoint into it
        save_checkpoint(trainer, out)              # out/weights and out/context
        model_options()                            # what a Megatron config needs on this machine

A checkpoint is a genuine NeMo 2.0 folder: `weights/` (Megatron's distributed checkpoint) and
`context/` (the model's configuration and tokenizer), with `hf/` beside them: config.json and the
tokenizer files of the HF model, from which `open_checkpoint` builds the model again. Weights are
float32 on the CPU and bfloat16 on a GPU. Knows nothing of training, stages or artifacts.
"""

from __future__ import annotations

import gc
import logging as std_logging
import queue
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.adapters import nemo_weights
from pipeline.adapters.absent import absent
from pipeline.adapters.hf import WeightReader
from pipeline.adapters.megatron_cpu import Patch, cpu_megatron, replaced
from pipeline.checkpoints import Shape, copy_assets, read_shape

if TYPE_CHECKING:
    import torch
    from nemo.collections.llm import GPTConfig, GPTModel
    from nemo.collections.llm.peft import DoRA, LoRA
    from nemo.lightning import Trainer

EXTRA_STATE = "._extra_state"
# Optional packages that NeMo and its libraries (Transformer Engine: jax) import where they are: a
# tenth of the modules, and nothing in them is used here.
_UNUSED = ("jax", "modelopt", "sklearn", "wandb")
_FOR_GPUS = ("transformer_engine", "transformer_engine_torch")  # refuses to work without one
ASSETS = "hf"  # the folder of config.json and tokenizer files inside a checkpoint


@contextmanager
def nemo_session() -> Iterator[None]:
    """NeMo, imported and quiet, on this machine's GPU or CPU; its process groups end with it."""
    _import_quietly()
    import numpy
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from nemo.lightning.megatron_parallel import MegatronParallel

    results: queue.Queue[Any] = queue.Queue()
    state_of = MegatronParallel._module_sharded_state_dict

    def weights_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {n: t for n, t in state_of(*args, **kwargs).items() if not n.endswith(EXTRA_STATE)}

    patches: list[Patch] = [
        # The writer of checkpoints returns its results through this queue. Megatron makes one in a
        # process of its own, seconds to start; here every save is synchronous, in this process.
        (filesystem_async, "_results_queue", results),
        # Only Transformer Engine's layers have this state (of FP8 training). Without it a
        # checkpoint holds the same, and can be opened, with them and with Megatron's own layers.
        (MegatronParallel, "_module_sharded_state_dict", weights_of),
        # Ranks that share the writing of a checkpoint call it by the name that NumPy 2 dropped.
        (numpy, "product", numpy.prod),
    ]
    with warnings.catch_warnings(action="ignore"), replaced(patches), cpu_megatron():
        try:
            yield
        finally:
            _end_process_groups()


def _import_quietly() -> None:
    """Import NeMo. It and its libraries tell every step at INFO; a stage tells what matters."""
    collecting = gc.isenabled()
    with warnings.catch_warnings(action="ignore"), absent(*_unused()):
        std_logging.disable(std_logging.WARNING)
        gc.disable()  # 8,800 modules make no garbage, and looking for it takes a tenth of the time
        try:
            import nemo.collections.llm  # noqa: F401
            from nemo.utils import logging
        finally:
            std_logging.disable(std_logging.NOTSET)
            if collecting:
                gc.enable()
    logging.setLevel(logging.ERROR)
    for name in ("lightning", "pytorch_lightning", "megatron", "torch.distributed"):
        for logger in (name, f"{name}.pytorch", f"{name}.fabric"):
            std_logging.getLogger(logger).setLevel(std_logging.ERROR)


def _unused() -> tuple[str, ...]:
    return _UNUSED if on_gpu() else (*_UNUSED, *_FOR_GPUS)


def _end_process_groups() -> None:
    import torch
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def has_transformer_engine() -> bool:
    """Whether the layers are Transformer Engine's on this machine, not Megatron's own."""
    return on_gpu() and find_spec("transformer_engine") is not None


def checkpoint_dtype() -> str:
    """Precision of the checkpoints that are written on this machine."""
    return "bfloat16" if on_gpu() else "float32"


def model_options() -> dict[str, Any]:
    """Fields of a Megatron model's configuration that this machine decides."""
    precision = _precision(checkpoint_dtype())
    if has_transformer_engine():
        # Reads the logits in their own precision and leaves the gradient in their place, where
        # Megatron's makes copies in float32.
        return {**precision, "cross_entropy_fusion_impl": "te"}
    return {
        **precision,
        "use_cpu_initialization": not on_gpu(),
        # Kernels of Transformer Engine and Apex, or such as torch.compile would first build.
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "cross_entropy_loss_fusion": False,
        # Apex's layer norm only.
        "persist_layer_norm": False,
        # Frees a tensor's storage by a trick that needs pipeline parallelism on GPUs.
        "deallocate_pipeline_outputs": False,
    }


def _precision(dtype: str) -> dict[str, Any]:
    import torch

    kind = getattr(torch, dtype)
    return {"bf16": dtype == "bfloat16", "params_dtype": kind, "pipeline_dtype": kind}


def model_for(hf_folder: Path, *, seq_length: int | None = None, **options: Any) -> GPTModel:
    """A NeMo model of the shape in `hf_folder`/config.json, without weights yet.

    seq_length: longest sequence in tokens; the model's own maximum when None.
    options: fields of the Megatron configuration, over those that the folder and machine give.

    The vocabulary keeps exactly the embedding's rows, so that logits agree with HF's one by one;
    a tensor parallel size must divide it.
    """
    shape = read_shape(hf_folder)
    config_class, model_class, fields = _family(shape)
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
        "rotary_percent": 1.0,
        "layernorm_epsilon": shape.norm_eps,
        "share_embeddings_and_output_weights": shape.tied,
        "add_qkv_bias": shape.qkv_bias,
        "init_method_std": shape.initializer_range,
        "attention_dropout": shape.attention_dropout,
        "hidden_dropout": 0.0,
    }
    config: GPTConfig = config_class(**(fields | model_options() | options))
    model = model_class(config, tokenizer=tokenizer_for(hf_folder))
    model.register_load_state_dict_post_hook(_without_extra_state)
    return model


def _without_extra_state(module: Any, keys: Any) -> None:
    """No checkpoint has Transformer Engine's extra state (see nemo_session): it is not missing."""
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(EXTRA_STATE)]


def _family(shape: Shape) -> tuple[type[GPTConfig], type[GPTModel], dict[str, Any]]:
    """The NeMo classes of a family, and the fields that it alone has."""
    if shape.family == "qwen2":
        from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config, Qwen2Model

        return Qwen2Config, Qwen2Model, {}
    if shape.family == "mistral":
        from nemo.collections.llm.gpt.model.mistral import MistralConfig7B, MistralModel

        # Full attention: a smaller window was refused when the folder was checked.
        return MistralConfig7B, MistralModel, {"window_size": None, "cp_comm_type": None}
    from nemo.collections.llm.gpt.model.llama import Llama31Config, LlamaConfig, LlamaModel

    if (rope := shape.rope_scaling) is None:
        return LlamaConfig, LlamaModel, {}
    scaling = {
        "scale_factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "old_context_len": rope.original_max_positions,
    }
    return Llama31Config, LlamaModel, scaling


def tokenizer_for(folder: Path) -> Any:
    """NeMo's tokenizer object of an HF folder. Its context keeps a copy of `folder`'s files."""
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

    return AutoTokenizer(str(folder), trust_remote_code=False)


def import_hf(hf_folder: Path, out: Path) -> None:
    """Write an HF model as a NeMo 2.0 checkpoint: out/weights, out/context, out/hf.

    Tensors are read one at a time, so that the model is held once. NeMo's own importers hold it
    twice, run the tokenizer's code and share one temporary folder among all runs.
    """
    shape = read_shape(hf_folder)
    copy_assets(hf_folder, out / ASSETS)
    model = model_for(out / ASSETS, perform_initialization=False)
    trainer = connect(model)
    parameter = _parameters(model)
    with WeightReader(hf_folder) as source:
        for name, tensor in nemo_weights.fused(shape, source.tensor):
            parameter(name).copy_(tensor)
    save_checkpoint(trainer, out)


def save_checkpoint(trainer: Trainer, out: Path) -> None:
    """Write the weights of a trainer's model to out/weights, and what it is to out/context."""
    from nemo.lightning.io.pl import TrainerContext

    trainer.save_checkpoint(out, weights_only=True)
    if trainer.is_global_zero:
        TrainerContext.from_trainer(trainer).io_dump(out / "context", yaml_attrs=["model"])
    trainer.strategy.barrier()


def open_checkpoint(folder: Path, *, adapter: Path | None = None) -> GPTModel:
    """The model in a nemo_checkpoint, in evaluation mode, with a nemo_adapter on it if given.

    It is float32 on every machine: what is opened here is compared, folded and written, and
    rounding belongs at the end of that.
    """
    exact = _precision("float32")
    model = model_for(folder / ASSETS, perform_initialization=False, **exact)
    trainer = connect(model)
    load_weights(trainer, folder)
    if adapter is not None:
        from nemo.lightning import io

        peft: LoRA | DoRA = io.load_context(adapter / "context", subpath="model.model_transform")
        model.trainer = trainer
        peft(model)
        load_weights(trainer, adapter, only_adapter=True)
    return model.eval()


def connect(model: GPTModel) -> Trainer:
    """Build the Megatron module of `model` on this machine; gives its Lightning trainer."""
    import torch
    from lightning.pytorch.trainer.states import TrainerFn
    from nemo.lightning import MegatronStrategy, Trainer

    strategy = MegatronStrategy(
        ddp="pytorch",
        setup_optimizers=False,
        ckpt_save_optimizer=False,
        ckpt_async_save=False,  # needs CUDA, and there is nothing to overlap with
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


def load_weights(trainer: Trainer, folder: Path, *, only_adapter: bool = False) -> None:
    """Read a checkpoint's weights into the model of `connect`, or an adapter's alone."""
    strategy = trainer.strategy
    weights = folder / "weights"
    metadata = strategy.unwrapped_checkpoint_io.load_content_metadata(weights)
    state = strategy.megatron_parallel.sharded_state_dict(metadata=metadata)
    if only_adapter:
        state = {name: tensor for name, tensor in state.items() if ".adapter." in name}
    loaded = strategy.unwrapped_checkpoint_io.load_checkpoint(weights, {"state_dict": state})
    strategy.load_model_state_dict(loaded, strict=not only_adapter)


def _parameters(model: GPTModel) -> Callable[[str], torch.Tensor]:
    """Reads the Megatron module's parameters by the names of `nemo_weights`."""
    # A layer with an adapter keeps the weights that it wraps one level down.
    found = {n.replace(".to_wrap.", "."): p for n, p in model.module.named_parameters()}

    def parameter(name: str) -> torch.Tensor:
        return found[name if name in found else nemo_weights.local_name(name)].detach()

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


def hf_tensors(model: GPTModel, shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights under their HF names, one after another."""
    return nemo_weights.unfused(shape, _parameters(model))


@dataclass(frozen=True)
class AdapterLayer:
    """The adapter of one linear layer, and the layer's own weights.

    weight: [outputs, inputs], bias: [outputs] or None; a: [rank, inputs], b: [outputs, rank].
    The update of the weight is scale * b @ a.
    magnitude: DoRA's row norms [outputs]; None for LoRA.
    """

    layer: int
    name: str  # as in nemo_weights.LINEAR_LAYERS
    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the plain linear layer that computes the same.

        DoRA: magnitude * (W + scale B A) / |W + scale B A|, by rows (arXiv:2402.09353, equation
        5). NeMo multiplies the layer's whole output so, and with it the bias.
        """
        import torch

        weight = self.weight + self.scale * (self.b @ self.a)
        if self.magnitude is None:
            return weight, self.bias
        stretch = self.magnitude / torch.linalg.vector_norm(weight, dim=1)
        return stretch[:, None] * weight, None if self.bias is None else stretch * self.bias


def adapter_layers(model: GPTModel) -> list[AdapterLayer]:
    """The adapters on a model, in the order of its layers."""
    return [_adapter_layer(name, module) for name, module in _adapted(model)]


def fold_adapter(model: GPTModel) -> None:
    """Make the adapters part of the weights; the model is then one without adapters."""
    for name, module in _adapted(model):
        linear = module.to_wrap
        weight, bias = _adapter_layer(name, module).folded()
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)
        # Asked of Transformer Engine's layers for the adapter's sake; plain layers must not.
        for flag in ("return_layernorm_output", "return_layernorm_output_gathered"):
            if hasattr(linear, flag):
                setattr(linear, flag, False)
        parent, _, child = name.rpartition(".")
        setattr(model.module.get_submodule(parent), child, linear)


def peft_tensors(shape: Shape, layers: Sequence[AdapterLayer]) -> dict[str, torch.Tensor]:
    """The adapters in the HF PEFT library's form, tensors by name.

    The one A of a fused layer goes to each of its parts, with the part's rows of B. A bias that
    DoRA stretches (see AdapterLayer.folded) goes along, as PEFT leaves the bias as it is.
    """
    tensors = {}
    for adapter in layers:
        rule = nemo_weights.linear_rule(adapter.layer, adapter.name)
        bias = adapter.folded()[1] if adapter.magnitude is not None else None
        named = {"lora_B.weight": adapter.b, "lora_magnitude_vector": adapter.magnitude}
        named["base_layer.bias"] = bias
        for module in rule.hf:
            tensors[f"base_model.model.{module}.lora_A.weight"] = adapter.a
        for name, tensor in named.items():
            if tensor is not None:
                for module, part in zip(rule.hf, rule.split(shape, tensor), strict=True):
                    tensors[f"base_model.model.{module}.{name}"] = part
    return tensors


def _adapted(model: GPTModel) -> list[tuple[str, Any]]:
    """Names and modules of the layers with an adapter."""
    from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper

    return [(n, m) for n, m in model.module.named_modules() if isinstance(m, AdapterWrapper)]


def _adapter_layer(name: str, module: Any) -> AdapterLayer:
    _, _, layer, linear = name.split(".", 3)  # decoder.layers.<i>.<linear>
    adapter, wrapped = module.adapter, module.to_wrap
    bias = getattr(wrapped, "bias", None)
    magnitude = getattr(adapter, "weight_magnitude", None)
    return AdapterLayer(
        layer=int(layer),
        name=linear,
        weight=wrapped.weight.detach(),
        # Transformer Engine's layers without a bias have an empty one.
        bias=bias.detach() if bias is not None and bias.numel() else None,
        a=adapter.linear_in.weight.detach(),
        b=adapter.linear_out.weight.detach(),
        scale=adapter.alpha / adapter.dim,
        magnitude=None if magnitude is None else magnitude.detach(),
    )
