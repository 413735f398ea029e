"""Megatron's distributed optimizer with split master weights, in bfloat16 on a CPU.

    with nemo_session(), shared_optimizer():
        trainer.train(job, report)

The optimizer and the checkpoints are Megatron's own, with this project's patches for GPUs. A CPU
lacks two things. Transformer Engine's FusedAdam is replaced by a class with the methods that are
called, and the Triton kernel by torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from pipeline.core.monkeypatch import replaced
from pipeline.training.nemo.patches.adam_step import AdamStep
from pipeline.training.nemo.patches.master_weights import master_weights, split, whole
from pipeline.training.nemo.patches.optimizer_checkpoint import streamed_optimizer_state

Tensor = torch.Tensor


def adam(
    grad: Tensor, weight: Tensor, mean: Tensor, square: Tensor, low: Tensor, step: AdamStep
) -> None:
    """triton_kernels.adam, by torch's AdamW."""
    exact = torch.nn.Parameter(whole(weight, low))
    exact.grad = grad * step.scale
    betas = (step.beta1, step.beta2)
    torchs = torch.optim.AdamW([exact], step.rate, betas, step.eps, step.decay)
    count = torch.tensor(float(step.number - 1))
    torchs.state[exact] = {"step": count, "exp_avg": mean, "exp_avg_sq": square}
    torchs.step()
    high, low_bits = split(exact.detach())
    weight.copy_(high)
    low.copy_(low_bits)


engine = ModuleType("transformer_engine_torch")
engine.multi_tensor_adam_param_remainder = None  # type: ignore[attr-defined]


class FusedAdam(torch.optim.Optimizer):
    """Transformer Engine's, for weights in bfloat16 with their lower halves as state. Its state is
    cast to the weights' type when it is loaded, as torch does it, unless that is replaced."""

    def __init__(
        self, params: Any, lr: float, weight_decay: float, betas: Any, eps: float, **_: Any
    ):
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        )

    def get_unscaled_state(self, param: Tensor, name: str) -> Tensor:
        found: Tensor = self.state[param][name]
        return found

    def set_scaled_state(self, param: Tensor, name: str, value: Tensor) -> None:
        assert value.dtype == (torch.int16 if name == "master_param" else torch.float32)
        self.state[param][name].copy_(value)

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                if not self.state[p]:
                    moments = {n: torch.zeros_like(p).float() for n in ("exp_avg", "exp_avg_sq")}
                    low = torch.zeros_like(p, dtype=torch.int16)
                    self.state[p] = {**moments, "master_param": low}
            names = ("exp_avg", "exp_avg_sq", "master_param")
            lists = [[p.decoupled_grad for p in group["params"]], group["params"]]
            lists += [[self.state[p][name] for p in group["params"]] for name in names]
            engine.multi_tensor_adam_param_remainder(
                0, None, lists, group["lr"], *group["betas"], group["eps"], group["step"],
                1, 1, group["weight_decay"],
            )  # fmt: skip


@contextmanager
def shared_optimizer() -> Iterator[None]:
    import megatron.core.optimizer as megatron
    import megatron.core.optimizer.distrib_optimizer as distributed
    import nemo.lightning as nl

    from pipeline.training.nemo import trainer as nemo_training

    kernels, optimizers = ModuleType("triton_kernels"), ModuleType("optimizers")
    vars(kernels).update(adam=adam)
    vars(optimizers).update(FusedAdam=FusedAdam)
    ddp, options = nemo_training.DistributedDataParallelConfig, nemo_training.OptimizerConfig
    precision, type_of = nl.MegatronMixedPrecision.__init__, Tensor.type

    def options_of(**given: Any) -> Any:
        made = options(**{**given, "use_distributed_optimizer": True, "bf16": True})
        made.use_precision_aware_optimizer = True  # beforehand it asks for Transformer Engine
        made.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
        return made

    def bfloat16(self: Any, **_: Any) -> None:
        precision(
            self, precision="bf16-mixed", params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16, autocast_enabled=False, grad_reduce_in_fp32=True,
        )  # fmt: skip

    def on_a_gpu(tensor: Tensor, *given: Any) -> Any:
        """The type's name, by which Megatron knows what it may share."""
        found = type_of(tensor, *given)
        return found if given else found.replace("torch.", "torch.cuda.")

    modules = {
        "transformer_engine_torch": engine,
        "transformer_engine": ModuleType("transformer_engine"),
        "transformer_engine.pytorch": ModuleType("pytorch"),
        "transformer_engine.pytorch.optimizers": optimizers,
    }
    sys.modules |= modules
    patches = [*master_weights(), *streamed_optimizer_state()]
    for name in modules:
        del sys.modules[name]
    sys.modules["pipeline.training.nemo.patches.triton_kernels"] = kernels
    patches += [
        (nemo_training, "DistributedDataParallelConfig", lambda **given: ddp(
            **{**given, "use_distributed_optimizer": True})),
        (nemo_training, "OptimizerConfig", options_of),
        (nl.MegatronMixedPrecision, "__init__", bfloat16),
        (Tensor, "type", on_a_gpu),
        (megatron, "Adam", FusedAdam),
        (megatron, "USING_PYTORCH_OPTIMIZER", False),
        (megatron, "is_te_min_version", lambda *given: True),
        (distributed, "Adam", FusedAdam),
        (distributed, "HAVE_APEX_OR_TE", True),
        (distributed, "USING_TE_OPTIMIZER", True),
    ]  # fmt: skip
    try:
        with replaced(patches):
            yield
    finally:
        del sys.modules["pipeline.training.nemo.patches.triton_kernels"]
