"""Attention over a FlatCache on a GPU, and for which models it is right.

PyTorch's flash attention reads prompts; our own kernels (decode_kernels.py) do steps of one token a
row, if Triton can compile them.
"""

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.engines.hf.flat_cache import Step, copied
from pipeline.engines.hf.fusing import has_compiler

if TYPE_CHECKING:
    import torch

LONGEST_HEAD = 256  # the kernel's limit
# Fields of a config that change attention in a way that the kernel's arguments cannot express.
OTHER_ATTENTION = ("attn_logit_softcapping", "attention_chunk_size", "use_alibi", "alibi")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # fields with their number


def usable(model: Any) -> bool:
    """Whether the kernel computes this model's attention: on a GPU, in 16 bits, and in the way that
    transformers lets others replace."""
    import inspect

    import torch

    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or (heads and config.hidden_size // heads)
    return bool(
        model.device.type == "cuda"
        and torch.cuda.get_device_capability(model.device) >= (8, 0)
        and model.dtype in (torch.bfloat16, torch.float16)
        and "logits_to_keep" in inspect.signature(model.forward).parameters
        and getattr(model, "_supports_attention_backend", False)
        and size
        and size % 8 == 0
        and size <= LONGEST_HEAD
        and not any(getattr(config, name, None) for name in OTHER_ATTENTION)
        and not any("sinks" in name for name, _ in model.named_parameters())
    )


def launches_alike(model: Any) -> bool:
    """Whether every pass of a size launches the same kernels, which a CUDA graph needs. Experts are
    launched as their tokens ask for them, and some rotary frequencies change with the positions."""
    experts = any(getattr(model.config, name, None) for name in EXPERTS)
    return not experts and not any(_longest_rope(module) for module in model.modules())


def fix_frequencies(model: Any, length: int) -> None:
    """Keep rotary frequencies that change beyond a length as they are, if no row gets so long.

    transformers asks the GPU for the largest position of each pass, which a graph cannot do.
    """
    for module in model.modules():
        if (longest := _longest_rope(module)) and length <= longest:
            module.rope_type = "default"  # of no update


def _longest_rope(module: Any) -> int | None:
    """The length up to which a module's rotary frequencies stay as they are; None if they do in
    any case, or the module has none."""
    kind = getattr(module, "rope_type", "default")
    if kind == "longrope":
        found = getattr(module.config, "original_max_position_embeddings", None)
        return int(found or module.original_max_seq_len)
    return int(module.original_max_seq_len) if "dynamic" in kind else None


def attention(
    query: "torch.Tensor",
    keys: "torch.Tensor",
    values: "torch.Tensor",
    step: Step,
    *,
    scale: float,
    window: int | None,
) -> "torch.Tensor":
    """flat_cache.Attention.

    The kernel of scaled_dot_product_attention is called directly, because that function takes no
    lengths of rows: it would read every row to the end of the longest one, and copy the heads that
    queries share.
    """
    import torch

    if step.width == 1 and (kernels := _kernels()):
        found: torch.Tensor = kernels.attended(
            query, keys, values, step, scale=scale, window=window
        )
        return found
    return torch.ops.aten._flash_attention_forward(
        query,
        keys,
        values,
        step.query_starts,
        step.key_starts,
        step.width,
        step.longest,
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
        seqused_k=step.lengths,
    )[0]


def write(
    key: "torch.Tensor",
    value: "torch.Tensor",
    keys: "torch.Tensor",
    values: "torch.Tensor",
    places: "torch.Tensor",
) -> None:
    """flat_cache.Write in one kernel, if there is one."""
    (kernels.write if (kernels := _kernels()) else copied)(key, value, keys, values, places)


@cache
def _kernels() -> ModuleType | None:
    """decode_kernels, if it can be compiled."""
    if not has_compiler():
        return None
    try:
        from pipeline.engines.hf import decode_kernels
    except ImportError:  # there is no Triton
        return None
    return decode_kernels
