"""What stands in for CUDA is there inside the session, and nothing of it is left outside."""

from typing import Any

import pytest
import torch

from pipeline.training.nemo.session import nemo_session


def test_everything_replaced_for_the_cpu_is_put_back() -> None:
    with nemo_session():
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    names = {
        torch.cuda: ["current_device", "Stream", "manual_seed", "FloatTensor"],
        torch: ["zeros", "tensor"],
        torch.Tensor: ["to", "cuda"],
        CudaRNGStatesTracker: ["fork"],
    }

    def found() -> list[Any]:
        return [getattr(owner, name) for owner, several in names.items() for name in several]

    before = found()
    with pytest.raises(KeyError, match="inside"), nemo_session():  # noqa: PT012
        assert all(new is not old for new, old in zip(found(), before, strict=True))
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.ones(1).cuda().to("cuda:0").device.type == "cpu"
        with CudaRNGStatesTracker().fork():
            assert torch.cuda.current_device() == torch.device("cpu")
        raise KeyError("inside")
    assert all(new is old for new, old in zip(found(), before, strict=True))
    assert "to" not in vars(torch.Tensor)


def test_checkpoints_leave_out_what_only_transformer_engine_has() -> None:
    """What Megatron's own layers wrote has no such state, and must open with the others."""

    class Layer:
        def sharded_state_dict(self, **kwargs: Any) -> dict[str, int]:
            return {"linear.weight": 1, "linear._extra_state": 2, "norm._extra_state": 3}

    with nemo_session():
        from nemo.lightning.megatron_parallel import MegatronParallel

        parallel = MegatronParallel.__new__(MegatronParallel)
        state = MegatronParallel._module_sharded_state_dict(parallel, Layer(), metadata={})
    assert state == {"linear.weight": 1}
