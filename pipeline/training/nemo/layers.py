"""Layers of Megatron-Core for what NeMo's own layer specifications lack or compute differently.

    use_layers(model, shape)          # before its Megatron module is built

They are NeMo's default layers, of Transformer Engine where it is installed and of Megatron-Core
elsewhere, with what a family needs on top: norms behind attention and feed-forward part, windows,
caps of scores, biases on some linear layers only, two rotary bases. NeMo's specifications of Gemma
2 and 3 name Transformer Engine's classes and put the norm behind a linear layer into that layer,
where an adapter's product would be added after the norm: folded into the weight it would be
another model. Names in saved checkpoints are NeMo's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.utils import get_default_causal_mask, get_sliding_window_causal_mask

from pipeline.models.architecture import Shape
from pipeline.models.families.record import SHARED_GATE
from pipeline.training.nemo.session import has_transformer_engine

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from nemo.collections.llm import GPTConfig


def use_layers(model: Any, shape: Shape) -> None:
    """Build a NeMo model's Megatron module of these layers.

    Its configuration names NeMo's own layers again afterwards, as its record in a checkpoint does.
    """
    configure = model.configure_model

    def configure_with_layers(*args: Any, **kwargs: Any) -> None:
        own = model.config.transformer_layer_spec
        model.config.transformer_layer_spec = _layer_spec(shape)
        try:
            configure(*args, **kwargs)
        finally:
            model.config.transformer_layer_spec = own

    model.configure_model = configure_with_layers


def _layer_spec(shape: Shape) -> Callable[[GPTConfig], ModuleSpec]:
    """What a NeMo configuration of the shape takes as its `transformer_layer_spec`."""

    def spec_of(config: GPTConfig, vp_stage: int | None = None) -> Any:
        from nemo.collections.llm.gpt.model.base import default_layer_spec

        if shape.experts is None:
            return changed(default_layer_spec(config))
        block = expert_layers(config, vp_stage)
        for number, layer in enumerate(block.layer_specs):
            mlp = layer.submodules.mlp
            if _gated(shape) and mlp.module is MoELayer:
                mlp.submodules.shared_experts.params = {"gate": True}
            if _changes_attention(shape):
                block.layer_specs[number] = changed(layer)
        return block

    def changed(spec: ModuleSpec) -> ModuleSpec:
        layer = spec.submodules
        attention, mlp = layer.self_attention, layer.mlp
        post_norm = _norm() if shape.layer.normed_outputs else None
        attention.module = _Attention
        attention.params |= {
            "linear_bias": shape.output_bias,
            "post_norm": post_norm,
            "windowed": _windowed(shape) if shape.window_rope_theta is not None else None,
        }
        if shape.attention_cap is not None or not has_transformer_engine():
            attention.submodules.core_attention = _CoreAttention
        if mlp.module is not MoELayer:
            layer.mlp = ModuleSpec(
                module=_Mlp,
                submodules=mlp.submodules,
                params={"linear_bias": shape.mlp_bias, "post_norm": post_norm},
            )
        layer.sharded_state_dict_keys_map = {
            **layer.sharded_state_dict_keys_map,
            "self_attention.post_layernorm.": "self_attention.linear_proj.post_layernorm.",
            "mlp.post_layernorm.": "mlp.linear_fc2.post_layernorm.",
        }
        return spec

    return spec_of


def _windowed(shape: Shape) -> Sequence[bool]:
    return shape.window.layers if shape.window else (False,) * shape.layers


def expert_layers(config: GPTConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers that `config.moe_layer_freq` describes: NeMo gives experts to every layer."""
    return get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=has_transformer_engine(),
        normalization=config.normalization,
        vp_stage=vp_stage,
    )


def needs_layers(shape: Shape) -> bool:
    """Whether a model of the shape needs other layers than NeMo's default ones."""
    mixed = shape.experts is not None and not all(shape.experts.layers)
    return mixed or _gated(shape) or _changes_attention(shape)


def _gated(shape: Shape) -> bool:
    """Whether a gate scales the output of the expert that every token goes through."""
    return any(plain.megatron == SHARED_GATE for plain in shape.layer.plain)


def _changes_attention(shape: Shape) -> bool:
    """Whether the layers differ from Megatron-Core's in attention, norms behind or biases."""
    return (
        shape.layer.normed_outputs
        or shape.window is not None
        or shape.attention_cap is not None
        or shape.output_bias != shape.mlp_bias
    )


def _norm() -> Any:
    if has_transformer_engine():
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    return WrappedTorchNorm


def _with_bias(config: Any, bias: bool) -> Any:
    """The configuration for a part of a layer whose linear layers have biases or not."""
    if config.add_bias_linear == bias:
        return config
    config = copy.copy(config)
    config.add_bias_linear = bias
    return config


class _Attention(SelfAttention):
    """Self-attention whose output layer has a bias of its own kind, and a norm behind it.

    linear_bias: of the output layer. windowed: whether each layer has a window; then it is given
    the rotary angles of layers with one and of the others, as Gemma 3's model computes them.
    """

    def __init__(
        self,
        config: Any,
        submodules: Any,
        layer_number: int,
        *args: Any,
        linear_bias: bool,
        post_norm: Any,
        windowed: Sequence[bool] | None,
        **kwargs: Any,
    ) -> None:
        config = _with_bias(config, linear_bias)
        super().__init__(config, submodules, layer_number, *args, **kwargs)
        self._angles = None if windowed is None else 0 if windowed[layer_number - 1] else 1
        if post_norm is not None:
            self.post_layernorm = build_module(
                post_norm,
                config=config,
                hidden_size=config.hidden_size,
                eps=config.layernorm_epsilon,
            )

    def forward(self, *args: Any, rotary_pos_emb: Any = None, **kwargs: Any) -> Any:
        if self._angles is not None and rotary_pos_emb is not None:
            rotary_pos_emb = rotary_pos_emb[self._angles]
        output, bias = super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kwargs)
        return _normed(self, output, bias)


class _Mlp(MLP):
    """A feed-forward part whose linear layers have biases of their own kind, and a norm behind."""

    def __init__(
        self, config: Any, *args: Any, linear_bias: bool, post_norm: Any, **kwargs: Any
    ) -> None:
        config = _with_bias(config, linear_bias)
        kwargs.setdefault("ffn_hidden_size", config.ffn_hidden_size)
        super().__init__(config, *args, **kwargs)
        if post_norm is not None:
            self.post_layernorm = build_module(
                post_norm,
                config=config,
                hidden_size=config.hidden_size,
                eps=config.layernorm_epsilon,
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _normed(self, *super().forward(*args, **kwargs))


def _normed(part: Any, output: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """A part's output behind its norm, if it has one."""
    if not hasattr(part, "post_layernorm"):
        return output, bias
    return part.post_layernorm(output if bias is None else output + bias), None


class _CoreAttention(DotProductAttention):
    """Megatron-Core's attention with capped scores, and windows within packed rows.

    Megatron-Core's softmax takes a window in place of the mask that says which rows are packed.
    """

    scale_mask_softmax: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        softmax: Any = self.scale_mask_softmax
        self.scale_mask_softmax = _Softmax(
            softmax, softmax.window_size, getattr(self.config, "attn_logit_softcapping", None)
        )
        softmax.window_size = None


class _Softmax(torch.nn.Module):
    """softmax: Megatron-Core's. window: its (tokens before, tokens behind). cap: of scores."""

    def __init__(self, softmax: Any, window: tuple[int, int] | None, cap: float | None) -> None:
        super().__init__()
        self._softmax, self._window, self._cap = softmax, window, cap

    def forward(
        self, scores: torch.Tensor, mask: torch.Tensor | None, offset: torch.Tensor | None = None
    ) -> Any:
        rows, columns = scores.shape[-2:]
        if self._cap:
            scores = self._cap * torch.tanh(scores / self._cap)
        if self._window is not None:
            near = get_sliding_window_causal_mask(rows, columns, self._window).to(scores.device)
            mask = near if mask is None else mask | near
        elif mask is None and rows > 1:
            mask = get_default_causal_mask(rows)
        return self._softmax(scores, mask, offset)
