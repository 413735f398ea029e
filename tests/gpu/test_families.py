"""Every family, trained and served on a GPU as on a CPU, and the preference objectives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.engines.hf import flash
from pipeline.engines.hf.session import HfSession
from pipeline.models import hf_model
from tests.gpu.test_hf_engine import in_bfloat16
from tests.gpu.test_training import BF16, NO_GPU, environment, losses
from tests.integration.family_case import MODELS, VARIANTS
from tests.integration.test_preference import OBJECTIVES, make_preference_job
from tests.integration.training_case import make_job, train_apart

PROMPTS = [[(7 * n + 3 * row) % 60 for n in range(40 + row)] for row in range(3)]
# Which experts a token goes to may differ by rounding, and then its answer does.
EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe"}


def imported(folder: Path, name: str) -> Path:
    """A family's model as a NeMo checkpoint, written by a CPU."""
    code = (
        "import sys, pathlib; from tests.integration.family_case import MODELS; "
        "from pipeline.training.nemo.models import import_hf; "
        "from pipeline.training.nemo.session import nemo_session\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with nemo_session(): import_hf(MODELS[sys.argv[2]](folder / 'source'), folder / 'base')"
    )
    command = [sys.executable, "-c", code, str(folder), name]
    subprocess.run(command, env=environment(), check=True, timeout=300)
    return folder / "base"


@pytest.mark.parametrize("name", MODELS)
def test_training_follows_a_cpu(name: str, tmp_path: Path) -> None:
    base = imported(tmp_path, name)
    found: list[list[float]] = []
    for variables in (NO_GPU, {}):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        job = make_job(base, folder, learning_rate=1e-3)
        found.append(losses(train_apart(job, **variables)))
    np.testing.assert_allclose(found[1], found[0], rtol=4 * BF16 if name in EXPERTS else BF16)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_preference_objectives_follow_a_cpu(objective: str, tmp_path: Path) -> None:
    base = imported(tmp_path, "llama")
    found: list[list[float]] = []
    for variables in (NO_GPU, {}):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        job = make_preference_job(base, folder, objective, learning_rate=1e-3)
        found.append(losses(train_apart(job, **variables)))
    # A margin is a difference of sums of log-probabilities, each rounded.
    np.testing.assert_allclose(found[1], found[0], rtol=4 * BF16, atol=4 * BF16)


@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
def test_the_engine_is_as_near_to_float32_as_the_plain_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through CUDA graphs where there are some: prompts in parts, then three rows at once."""
    folder = (MODELS | VARIANTS)[name](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    exact = hf_model.load_model(folder, dtype="float32")
    wanted = [hf_model.logits(exact, [*prompt, 3 + row]) for row, prompt in enumerate(PROMPTS)]
    in_bfloat16(folder)
    longest = 48 if "longrope" in name else config["max_position_embeddings"]
    fast = HfSession(folder, len(PROMPTS), longest)
    monkeypatch.setattr(flash, "usable", lambda _: False)
    plain = HfSession(folder, len(PROMPTS), longest)
    assert not plain.on_gpu
    errors = []
    for session in (fast, plain):
        for row, prompt in enumerate(PROMPTS):
            if session.on_gpu:
                session.read(row, prompt[:17], 0)
                session.read(row, prompt[17:], 17)
            else:
                session.prefill(row, prompt, 0)
        lengths = [len(prompt) + 1 for prompt in PROMPTS]
        found = torch.from_numpy(session.decode([3, 4, 5], lengths))
        errors.append(float((found - torch.stack([w[-1] for w in wanted])).abs().mean()))
    assert errors[0] <= 2 * errors[1] + 1e-3
