"""A state that an optimizer takes as it is."""

import torch

from pipeline.training.nemo.patches.optimizer_checkpoint import adopt


def test_a_state_is_adopted_without_a_copy() -> None:
    weights = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(3)]
    groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.2}]
    optimizer = torch.optim.AdamW(groups)
    optimizer.state[weights[1]] = {"exp_avg": torch.ones(4)}  # of before
    saved = optimizer.state_dict()
    saved["param_groups"][1] |= {"lr": 0.5, "step": 7}
    saved["state"] = {
        0: {"exp_avg": torch.rand(4), "master_param": torch.ones(4, dtype=torch.int16)},
        2: {"exp_avg": torch.rand(4)},
    }
    adopt(optimizer, saved)
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert optimizer.param_groups[1]["step"] == 7
    assert optimizer.param_groups[0]["params"] == weights[:2]
    assert optimizer.state.keys() == {weights[0], weights[2]}
    for number, state in saved["state"].items():
        for name, tensor in state.items():
            assert optimizer.state[weights[number]][name] is tensor, "float32 stays float32"
