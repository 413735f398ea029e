"""A checkpoint's optimizer state, written weight by weight, is the one that Megatron writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.optimizer_state_rank import SHAPES, whole_state


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_streamed_state_is_megatrons(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.optimizer_state_rank"]
    running = [
        subprocess.Popen([*command, str(r), str(ranks), str(tmp_path)], stdout=subprocess.PIPE)
        for r in range(ranks)
    ]
    said = [process.communicate(timeout=120)[0].decode().splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0] * ranks
    kept = [json.loads(line)["kept"] for line in said]
    assert sum(kept) == len(SHAPES), "each weight is with one rank"
    assert max(kept) - min(kept) <= 1

    theirs, ours = (torch.load(tmp_path / f"{name}.pt") for name in ("megatron", "streamed"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    for part, tensor in whole_state()["wide"].items():
        assert torch.equal(ours[f"optimizer.state.{part}.wide"], tensor)
