"""PyTorch, stepped by us, answers as transformers' own generate does, with adapters and without."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import DataError
from pipeline.engines.base import Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.hf.lora import LoraHfSession
from pipeline.engines.hf.session import HfSession
from pipeline.models import hf_model
from pipeline.models.architecture import read_shape
from tests.unit.model_folders import add_random_weights, make_model_folder

NEVER = 399  # a token that ends no answer here
SLOTS, MAX_SEQ_LEN, NEW = 3, 128, 20
PROMPTS = [list(range(5, 5 + length)) for length in (1, 2, 20, 60, 9)]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
    },
}


def make_model(folder: Path, family: str = "qwen2") -> Path:
    return add_random_weights(make_model_folder(folder, "demo"), **FAMILIES[family])


def make_adapter(folder: Path, model: Path, seed: int, parts: Sequence[str] = ("q_proj",)) -> Path:
    shape, random = read_shape(model), np.random.default_rng(seed)
    tensors = {}
    for name, size in shape.tensors():
        if name.removesuffix(".weight").endswith(tuple(parts)):
            place = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            for part, form in (("A", (4, size[1])), ("B", (size[0], 4))):
                values = random.normal(0, 0.4, form).astype(np.float32)
                tensors[f"{place}{part}.weight"] = torch.from_numpy(values)
    hf_model.write_adapter(folder, tensors, base="demo", rank=4, alpha=8, rslora=False, dora=False)
    return folder


def expected(model: Any, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[list[int]]:
    return [hf_model.greedy(model, p, max_new_tokens=NEW, stop_ids=[NEVER]) for p in prompts]


async def read(engine: BatchingEngine, prompt: Sequence[int], name: str | None) -> list[int]:
    how = Sampling(NEW, temperature=0, stop_ids=frozenset({NEVER}), adapter=name)
    return [token.id async for tokens in engine.generate(prompt, how) for token in tokens]


async def read_all(
    engine: BatchingEngine, names: Sequence[str | None]
) -> dict[str | None, list[list[int]]]:
    """Every prompt with every adapter, all at once."""
    asked = [(name, prompt) for prompt in PROMPTS for name in names]
    answers = await asyncio.gather(*(read(engine, prompt, name) for name, prompt in asked))
    return {
        name: [a for (n, _), a in zip(asked, answers, strict=True) if n == name] for name in names
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_given_at_once_are_those_of_generate(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "model", family)
    session = HfSession(folder, SLOTS, MAX_SEQ_LEN)
    engine = BatchingEngine(session, max_input_len=100, max_queue=9)
    found = asyncio.run(read_all(engine, [None]))[None]
    engine.close()
    assert found == expected(hf_model.load_model(folder, dtype="float32"))
    assert len({tuple(answer) for answer in found}) == len(PROMPTS)

    engine = BatchingEngine(session, max_input_len=100, max_queue=9, speculative_tokens=4)
    assert asyncio.run(read_all(engine, [None]))[None] == found
    engine.close()


def test_a_prompt_read_in_parts_and_moved_is_the_same_prompt(tmp_path: Path) -> None:
    session = HfSession(make_model(tmp_path / "model"), SLOTS, MAX_SEQ_LEN)
    prompt = PROMPTS[3]
    whole = session.prefill(0, prompt, 0)
    assert whole.shape == (len(prompt), session.vocab_size)
    session.prefill(2, prompt[:23], 0)
    parts = session.prefill(2, prompt[23:], 23)
    assert parts[-1] == pytest.approx(whole[-1], abs=1e-4)
    session.move(2, 1, len(prompt))
    following = session.decode([7, 7], [len(prompt) + 1] * 2)
    assert following[1] == pytest.approx(following[0], abs=1e-4)


def test_rows_of_a_batch_are_each_answered_by_their_own_adapter(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    places = {
        "a": make_adapter(tmp_path / "a", folder, 1),
        "b": make_adapter(tmp_path / "b", folder, 2, ("v_proj", "down_proj")),
    }
    wanted = {None: expected(hf_model.load_model(folder, dtype="float32"))}
    for name, place in places.items():
        wanted[name] = expected(
            hf_model.with_adapter(hf_model.load_model(folder, dtype="float32"), place)
        )
    assert wanted["a"] != wanted["b"] != wanted[None]

    async def scenario() -> None:
        session = LoraHfSession(folder, SLOTS, MAX_SEQ_LEN)
        engine = BatchingEngine(session, max_input_len=100, max_queue=99, speculative_tokens=4)
        assert "adapters" in engine.features
        try:
            for name, place in places.items():
                await engine.add_adapter(name, place)
            assert engine.adapters() == ["a", "b"]
            assert await read_all(engine, ["a", None, "b"]) == wanted

            # Removed while it answers: those answers are finished, and then it is gone.
            going = [asyncio.create_task(read(engine, prompt, "a")) for prompt in PROMPTS]
            await asyncio.sleep(0)
            await engine.remove_adapter("a")
            assert [task.result() for task in going] == wanted["a"]
            with pytest.raises(ValueError, match="no adapter 'a'"):
                await read(engine, PROMPTS[0], "a")
            left = {name: wanted[name] for name in ("b", None)}
            assert await read_all(engine, ["b", None]) == left

            await engine.remove_adapter("b")
            assert await read_all(engine, [None]) == {None: wanted[None]}
            await engine.add_adapter("a", places["a"])
            assert await read_all(engine, ["a"]) == {"a": wanted["a"]}
        finally:
            engine.close()

    asyncio.run(scenario())


def change_config(folder: Path, name: str = "adapter_config.json", **changes: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_what_is_no_adapter_of_this_model_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    session = LoraHfSession(folder, SLOTS, MAX_SEQ_LEN)
    larger = add_random_weights(make_model_folder(tmp_path / "larger", "demo"), hidden_size=128)
    deeper = add_random_weights(make_model_folder(tmp_path / "deeper", "demo"), num_hidden_layers=3)
    refused: Mapping[str, tuple[Path, str]] = {
        "wide": (make_adapter(tmp_path / "wide", larger, 1), "_proj has 64 inputs, .* 128"),
        "deep": (make_adapter(tmp_path / "deep", deeper, 1), "layers.2.*does not have"),
        "dora": (
            change_config(make_adapter(tmp_path / "dora", folder, 1), use_dora=True),
            "merge it",
        ),
        "other": (
            change_config(make_adapter(tmp_path / "other", folder, 1), peft_type="PREFIX_TUNING"),
            "not plain LoRA",
        ),
        "empty": (tmp_path, "not an adapter in the PEFT library's format"),
    }
    before = session.prefill(0, PROMPTS[2], 0)
    for name, (place, words) in refused.items():
        with pytest.raises(ValueError, match=words):
            session.add_adapter(name, place)
    # Shapes are compared with the linear layers below adapters that are there already, too.
    session.add_adapter("fits", make_adapter(tmp_path / "fits", folder, 1))
    with pytest.raises(ValueError, match="q_proj has 64 inputs"):
        session.add_adapter("wide", refused["wide"][0])
    session.remove_adapter("fits")
    assert session.prefill(0, PROMPTS[2], 0) == pytest.approx(before, abs=1e-5)


def test_an_adapter_may_have_any_name(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    session = LoraHfSession(folder, SLOTS, MAX_SEQ_LEN)
    plain = session.prefill(0, PROMPTS[2], 0)
    for seed, name in enumerate(("support-1.5", "base_model.lora_A")):
        session.add_adapter(name, make_adapter(tmp_path / name, folder, seed))
        session.use_adapter(0, name)
        assert session.prefill(0, PROMPTS[2], 0) != pytest.approx(plain, abs=1e-2)
    session.remove_adapter("support-1.5")
    session.remove_adapter("base_model.lora_A")
    session.use_adapter(0, None)
    assert session.prefill(0, PROMPTS[2], 0) == pytest.approx(plain, abs=1e-5)


WINDOW = 16


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": WINDOW},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ],
)
def test_sequences_beyond_a_models_window_see_the_window_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "model", changes["model_type"])
    change_config(folder, "config.json", **changes)
    prompt = (PROMPTS[2] * 4)[: 2 * WINDOW]
    found = HfSession(folder, SLOTS, 2 * WINDOW).prefill(0, prompt, 0)
    with torch.inference_mode():
        wanted = hf_model.load_model(folder, dtype="float32")(torch.tensor([prompt])).logits[0]
    assert found == pytest.approx(wanted[-len(found) :].numpy(), abs=1e-4)


def test_a_window_that_is_switched_off_bounds_nothing(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    change_config(folder, "config.json", use_sliding_window=False, sliding_window=WINDOW)
    assert HfSession(folder, SLOTS, MAX_SEQ_LEN).max_seq_len == MAX_SEQ_LEN


def test_a_model_that_sees_pictures_is_for_vllm(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    change_config(folder, "config.json", architectures=["Gemma3ForConditionalGeneration"])
    with pytest.raises(DataError, match=r"a Gemma3ForCond.* serve it with engine\.name=vllm"):
        HfSession(folder, SLOTS, MAX_SEQ_LEN)


def test_a_folder_that_transformers_does_not_take_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be served by transformers"):
        HfSession(folder, SLOTS, MAX_SEQ_LEN)


@pytest.mark.parametrize("replaceable", [True, False])
def test_a_model_whose_attention_cannot_be_replaced_gets_masks_to_add(
    tmp_path: Path, replaceable: bool
) -> None:
    """On a GPU such models of transformers refuse others."""
    from types import SimpleNamespace

    from pipeline.engines.hf.session import _Masks

    config = SimpleNamespace(_attn_implementation="sdpa")
    model = SimpleNamespace(config=config, _supports_attention_backend=replaceable)
    mask = _Masks(tmp_path, model, 8).of(torch.tensor([[2, 3]]), 4, torch.bfloat16)
    assert mask.shape == (1, 1, 2, 4)
    assert mask.dtype == (torch.bool if replaceable else torch.bfloat16)
    seen = mask if replaceable else mask == 0
    assert seen[0, 0].tolist() == [[True, True, True, False], [True] * 4]
