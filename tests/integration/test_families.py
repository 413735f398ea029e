"""What models of a family may have beside the usual: each variant is imported, merged and served.

The usual ones of each family, MODELS, go through the whole chain in the test of the table.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.hf.session import HfSession
from pipeline.models import hf_model
from pipeline.models.checks import check_folder
from pipeline.models.logit_proof import CPU_TOLERANCE, ProofChain
from tests.integration.family_case import MAX_POSITIONS, MODELS, VARIANTS

# Prompts longer than the windows, of different lengths, read in parts.
PROMPTS = [[(7 * n + 3 * row) % 60 for n in range(40 + row)] for row in range(3)]
STEPS = 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_computes_the_same_in_nemo_and_back(variant: str, tmp_path: Path) -> None:
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.session import nemo_session

    source = VARIANTS[variant](tmp_path / "source")
    shape = check_folder(source)
    with nemo_session():
        nemo.import_hf(source, tmp_path / "nemo")
        reference = partial(hf_model.logits, hf_model.load_model(source, dtype="float32"))
        chain = ProofChain(shape, gpu=False, reference=reference, name=variant)
        model = nemo.open_checkpoint(tmp_path / "nemo")
        chain.require("nemo", partial(nemo.logits, model))
        back = dict(nemo.hf_tensors(model, shape))
        assert not list(hf_model.unlike(source, back.items(), dtype="float32"))


def test_a_window_keeps_packed_rows_apart(tmp_path: Path) -> None:
    import torch

    from pipeline.training.batches import TokenRows
    from pipeline.training.nemo import models as nemo
    from pipeline.training.nemo.data import packed_tensors
    from pipeline.training.nemo.session import nemo_session

    source = VARIANTS["mistral, windows"](tmp_path / "source")
    rows = TokenRows.of((ids, [1] * len(ids)) for ids in PROMPTS[:2])
    with nemo_session():
        nemo.import_hf(source, tmp_path / "nemo")
        model = nemo.open_checkpoint(tmp_path / "nemo")
        pack = packed_tensors(rows, [np.arange(2)], length=96)
        with torch.inference_mode():
            logits = model.module(
                pack["tokens"], pack["position_ids"], attention_mask=pack["attention_mask"]
            )[0]
        start = 0
        for ids in PROMPTS[:2]:
            alone = nemo.logits(model, ids[:-1])  # the last token is only a label
            torch.testing.assert_close(logits[start : start + len(alone)], alone)
            start += len(alone)


@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
def test_the_engine_reads_as_transformers_does(name: str, tmp_path: Path) -> None:
    """Several sequences at a time, token by token with the cache, over windows and caps."""
    folder = (MODELS | VARIANTS)[name](tmp_path / "model")
    longest = 48 if "longrope" in name else MAX_POSITIONS
    session = HfSession(folder, len(PROMPTS), longest)
    model = hf_model.load_model(folder, dtype="float32")
    rows = [list(ids) for ids in PROMPTS]
    for row, ids in enumerate(rows):
        whole = hf_model.logits(model, ids).numpy()
        parts = [session.prefill(row, ids[:17], 0), session.prefill(row, ids[17:], 17)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=CPU_TOLERANCE)
        rows[row].append(int(whole[-1].argmax()))
    for _ in range(STEPS - 1):
        found = session.decode([ids[-1] for ids in rows], [len(ids) for ids in rows])
        for ids, logits in zip(rows, found, strict=True):
            ids.append(int(logits.argmax()))
    for ids, prompt in zip(rows, PROMPTS, strict=True):
        greedy = hf_model.greedy(model, prompt, max_new_tokens=STEPS, stop_ids=[2**31 - 1])
        assert ids[len(prompt) :] == greedy
