"""A model with a flat KV cache computes what transformers computes, padded or not.

The kernel and CUDA graphs need a GPU (tests/gpu/test_hf_engine.py); here a plain computation of the
same attention takes the kernel's place.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.engines.hf import flash
from pipeline.engines.hf.flat_cache import Step
from pipeline.engines.hf.graphs import FlatModel, Pass, row_sizes
from pipeline.engines.hf.session import HfSession
from pipeline.models import hf_model
from tests.unit.engines.hf.test_session import MAX_SEQ_LEN, PROMPTS, SLOTS, make_model


def attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """flat_cache.Attention, row by row: the last query of a row sees all of its tokens."""
    found = torch.zeros_like(query)
    for row, length in enumerate(step.lengths.tolist()):
        here = slice(*step.query_starts[row : row + 2].tolist())
        first = int(step.key_starts[row])
        q, k, v = query[here], keys[first : first + length], values[first : first + length]
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        at = torch.arange(length - len(q), length)[:, None]
        seen = torch.arange(length) <= at
        if window is not None:
            seen &= torch.arange(length) > at - window
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        found[here] = torch.einsum("hqk,khd->qhd", weights, v)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama3")


def flat_model(folder: Path) -> tuple[FlatModel, Pass]:
    model = hf_model.load_model(folder, dtype="float32")
    return FlatModel(model, SLOTS, MAX_SEQ_LEN, attention, graphs=False), Pass(model)


def test_prompts_in_parts_and_answers_of_several_rows(folder: Path) -> None:
    plain, (flat, how) = HfSession(folder, SLOTS, MAX_SEQ_LEN), flat_model(folder)
    for row, prompt in enumerate(PROMPTS[2:5]):
        wanted = plain.prefill(row, prompt, 0)
        first = flat.prefill(row, prompt[:7], 0, every=True, how=how)
        rest = flat.prefill(row, prompt[7:], 7, every=True, how=how)
        torch.testing.assert_close(
            torch.cat([first, rest]), torch.from_numpy(wanted), atol=1e-4, rtol=0
        )
        last = flat.prefill(row, prompt[7:], 7, every=False, how=how)
        torch.testing.assert_close(last, rest[-1:])
    lengths = [len(prompt) + 1 for prompt in PROMPTS[2:5]]
    wanted = torch.from_numpy(plain.decode([3, 4, 5], lengths))
    torch.testing.assert_close(flat.decode([3, 4, 5], lengths, how=how), wanted, atol=1e-4, rtol=0)
    flat.cache.move(1, 0, lengths[1])
    moved = flat.decode([9, 9], [lengths[1] + 1] * 2, how=how)
    torch.testing.assert_close(moved[0], moved[1])


def test_padding_changes_nothing(folder: Path) -> None:
    """As a graph pads: a prompt to a width, and running sequences to a number of rows."""
    flat, how = flat_model(folder)
    cache, prompt = flat.cache, PROMPTS[3]
    for row in range(SLOTS):
        flat.prefill(row, prompt[row:], 0, every=False, how=how)
    before = [part.clone() for part in (*cache.keys, *cache.values)]
    # The last row's prompt, whose padding reaches beyond it.
    start = 50
    step = cache.prompt_step(SLOTS - 1, prompt[2:][start:], start, width=100, every=False)
    padded = flat._run(step, how)[0]
    wanted = flat.prefill(SLOTS - 1, prompt[2:], 0, every=False, how=how)
    torch.testing.assert_close(padded, wanted, atol=1e-5, rtol=0)
    step = cache.answer_step([3], [len(prompt) + 1], rows=SLOTS)
    padded = flat._run(step, how)[:1, 0]
    torch.testing.assert_close(padded, flat.decode([3], [len(prompt) + 1], how=how))
    for part, old in zip((*cache.keys, *cache.values), before, strict=True):
        rows = [slice(r * MAX_SEQ_LEN, r * MAX_SEQ_LEN + len(prompt) - r) for r in range(SLOTS)]
        for row in rows:
            torch.testing.assert_close(part[row], old[row], atol=1e-5, rtol=0)


def test_a_window_hides_what_is_before_it(tmp_path: Path) -> None:
    from tests.unit.model_folders import add_random_weights, make_model_folder

    folder = add_random_weights(
        make_model_folder(tmp_path, "demo"),
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=8,
    )
    flat, how = flat_model(folder)
    wanted = HfSession(folder, SLOTS, MAX_SEQ_LEN).prefill(0, PROMPTS[3], 0)
    found = flat.prefill(0, PROMPTS[3], 0, every=True, how=how)
    torch.testing.assert_close(found, torch.from_numpy(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 33, 256, 300])
def test_each_number_of_rows_has_a_graph_that_is_not_much_larger(slots: int) -> None:
    sizes = row_sizes(slots)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == slots
    for rows in range(1, slots + 1):
        assert next(size for size in sizes if size >= rows) <= max(2 * rows, rows + 32)


@pytest.mark.parametrize(
    ("fields", "alike"),
    [({}, True), ({"num_local_experts": 8}, False), ({"num_experts": 4}, False)],
)
def test_models_with_experts_have_no_graphs(fields: dict[str, int], alike: bool) -> None:
    model = SimpleNamespace(config=SimpleNamespace(**fields), modules=list)
    assert flash.launches_alike(model) == alike


@pytest.mark.parametrize(("kind", "length"), [("dynamic", 64), ("longrope", 32)])
def test_rotary_frequencies_that_may_change_have_no_graphs(kind: str, length: int) -> None:
    config = SimpleNamespace(original_max_position_embeddings=32)
    rope = SimpleNamespace(rope_type=kind, original_max_seq_len=64, config=config)
    model = SimpleNamespace(config=SimpleNamespace(), modules=lambda: [SimpleNamespace(), rope])
    flash.fix_frequencies(model, length + 1)
    assert not flash.launches_alike(model)
    flash.fix_frequencies(model, length)  # no row gets so long that they change
    assert flash.launches_alike(model)
