"""LoRA adapters: each setting of PEFT has its effect or is refused, and nobody else notices."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from pipeline.engines import lora_settings
from pipeline.engines.hf.lora import LoraHfSession
from pipeline.engines.lora_settings import CONFIG, EMPTY_ONLY, FOLLOWED, WEIGHTS, WITHOUT_EFFECT
from pipeline.models import hf_model
from tests.unit.engines.hf.test_session import (
    MAX_SEQ_LEN,
    PROMPTS,
    SLOTS,
    change_config,
    make_adapter,
    make_model,
)

PARTS = ("q_proj", "v_proj")
PROMPT = PROMPTS[2]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("lora") / "model")


@pytest.fixture(scope="module")
def session(folder: Path) -> LoraHfSession:
    """A session with one adapter, "other", which every test shares."""
    session = LoraHfSession(folder, SLOTS, MAX_SEQ_LEN)
    session.add_adapter("other", make_adapter(folder.parent / "other", folder, 9))
    return session


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", folder, 3, PARTS)


def change_weights(adapter: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


def logits(session: LoraHfSession, name: str | None) -> NDArray[np.float32]:
    session.use_adapter(0, name)
    return session.prefill(0, PROMPT, 0)


def by_peft(folder: Path, adapter: Path) -> NDArray[np.float32]:
    """The logits of a model of its own, with PEFT alone."""
    model = hf_model.load_model(folder, dtype="float32")
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def only(*places: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            if not any(place in name for place in places):
                del tensors[name]

    return change


def with_rank(rank: int, *places: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            if any(place in name for place in places):
                cut = tensors[name][:rank] if "lora_A" in name else tensors[name][:, :rank]
                tensors[name] = cut.contiguous()

    return change


def with_biases(tensors: Tensors) -> None:
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name.replace("weight", "bias")] = torch.full((len(tensors[name]),), 0.5)


def with_magnitude(tensors: Tensors) -> None:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors[f"{module}.lora_magnitude_vector"] = torch.ones(64)


# For each key that PEFT follows: a value, and the weights that belong to it.
EFFECTS: Mapping[str, tuple[dict[str, Any], Callable[[Tensors], Any]]] = {
    "r": ({"r": 2}, with_rank(2, "proj")),
    "lora_alpha": ({"lora_alpha": 32}, len),
    "target_modules": ({"target_modules": r".*\.1\..*v_proj"}, only("layers.1.self_attn.v_proj")),
    "exclude_modules": ({"exclude_modules": ["v_proj"]}, only("q_proj")),
    "layers_to_transform": ({"layers_to_transform": [1]}, only("layers.1")),
    "layers_pattern": (
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        only("layers.0"),
    ),
    "rank_pattern": ({"rank_pattern": {"v_proj": 3}}, with_rank(3, "v_proj")),
    "alpha_pattern": ({"alpha_pattern": {r"layers\.0\..*q_proj": 64}}, len),
    "use_rslora": ({"use_rslora": True}, len),
    "lora_bias": ({"lora_bias": True}, with_biases),
}


def test_every_setting_of_peft_is_on_one_list() -> None:
    lists = [set(FOLLOWED), set(WITHOUT_EFFECT), set(EMPTY_ONLY)]
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert set.union(*lists) == {field.name for field in dataclasses.fields(LoraConfig)}
    assert set(EFFECTS) == set(FOLLOWED)


@pytest.mark.parametrize("key", EFFECTS)
def test_a_setting_has_the_effect_that_it_has_in_peft(
    folder: Path, session: LoraHfSession, adapter: Path, key: str
) -> None:
    plain, other = logits(session, None), logits(session, "other")
    session.add_adapter("plain", adapter)
    without = logits(session, "plain")
    session.remove_adapter("plain")
    changes, change = EFFECTS[key]
    change_config(adapter, CONFIG, **changes)
    change_weights(adapter, change)
    session.add_adapter("changed", adapter)
    found = logits(session, "changed")
    session.remove_adapter("changed")
    assert found == pytest.approx(by_peft(folder, adapter), abs=1e-3)
    assert np.abs(found - without).max() > 1e-2
    assert logits(session, None) == pytest.approx(plain, abs=1e-5)
    assert logits(session, "other") == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("key", [*WITHOUT_EFFECT, *sorted(EMPTY_ONLY)])
def test_a_setting_without_effect_is_taken_only_as_such(
    session: LoraHfSession, adapter: Path, key: str
) -> None:
    default = LoraConfig(task_type="CAUSAL_LM").to_dict().get(key)
    if key == "runtime_config":
        default = {"ephemeral_gpu_offload": False}
    change_config(adapter, CONFIG, **{key: default})
    session.check_adapter(adapter)
    odd: Any = ["lm_head"] if key == "modules_to_save" else {"odd": [[0, 2]]}
    change_config(adapter, CONFIG, **{key: odd})
    if WITHOUT_EFFECT.get(key) is lora_settings._anything:
        session.check_adapter(adapter)
    else:
        with pytest.raises(ValueError, match=f"{key}|not plain LoRA"):
            session.add_adapter("odd", adapter)


@pytest.mark.parametrize("key", FOLLOWED)
@pytest.mark.parametrize("value", [True, -1, 1.5, {"q_proj": "4"}, [1.5], float("nan")])
def test_a_value_of_the_wrong_kind_is_refused(
    session: LoraHfSession, adapter: Path, key: str, value: Any
) -> None:
    right = {"lora_alpha": (-1, 1.5), "layers_to_transform": (-1,)}.get(key, ())
    if value in right or (value is True and key in ("use_rslora", "lora_bias")):
        return
    change_config(adapter, CONFIG, **{key: value})
    with pytest.raises(ValueError, match=f"{CONFIG} says {key}="):
        session.check_adapter(adapter)


REFUSED: Mapping[str, tuple[dict[str, Any], Callable[[Tensors], Any], str]] = {
    "unknown key": ({"new_kind": 1}, len, "'new_kind', which this server does not know"),
    "dora": ({"use_dora": True}, len, "not plain LoRA"),
    "replication": ({"layer_replication": [[0, 2], [1, 2]]}, len, "layer_replication"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, len, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1]}, len, "trainable_token_indices"),
    "init": ({"init_lora_weights": "pissa"}, len, "init_lora_weights"),
    "biases": ({"bias": "all"}, len, "bias"),
    "nowhere": ({"target_modules": ["nowhere"]}, len, "names none of its layers"),
    "a norm": ({"target_modules": ["q_proj", "norm"]}, len, "norm, which is no linear layer"),
    "embedding": ({"target_modules": ["embed_tokens"]}, len, "which is no linear layer"),
    "fewer modules": ({"target_modules": ["q_proj"]}, len, "leaves .*v_proj out"),
    "more modules": ({"target_modules": [*PARTS, "k_proj"]}, len, "k_proj.* does not have"),
    "fewer layers": ({"layers_to_transform": [0]}, len, "leaves .*layers.1.* out"),
    "excluded": ({"exclude_modules": ["v_proj"]}, len, "leaves .*v_proj out"),
    "rank": ({"r": 8}, len, r"\[8, 64\], and in .* \[4, 64\]"),
    "a rank": ({"rank_pattern": {"q_proj": 6}}, len, r"\[6, 64\], and in .* \[4, 64\]"),
    "pattern": ({"target_modules": "(("}, len, "does not fit this model"),
    "no A": ({}, only("lora_B"), "asks for .*lora_A.weight"),
    "half a layer": ({}, only("lora_A", "layers.0"), "asks for .*lora_B.weight"),
    "nan": ({}, lambda t: next(iter(t.values())).fill_(np.nan), "not finite"),
    "integers": (
        {},
        lambda t: t.update({name: value.to(torch.int8) for name, value in t.items()}),
        "is of type I8",
    ),
    "a bias": ({}, with_biases, "leaves .* out"),
    "more": (
        {},
        lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(400, 64)}),
        "lm_head.weight, which the model does not have",
    ),
    "magnitudes": ({}, with_magnitude, "leaves .*q_proj out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_adapter_leaves_the_others_as_they_were(
    session: LoraHfSession, adapter: Path, case: str
) -> None:
    plain, other = logits(session, None), logits(session, "other")
    changes, change, words = REFUSED[case]
    change_config(adapter, CONFIG, **changes)
    change_weights(adapter, change)
    with pytest.raises(ValueError, match=words):
        session.add_adapter("refused", adapter)
    assert (logits(session, None) == plain).all()
    assert (logits(session, "other") == other).all()


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{}", '{"peft_type": "LORA"}'])
def test_a_config_that_is_none_is_refused(session: LoraHfSession, adapter: Path, text: str) -> None:
    (adapter / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"not an adapter|not plain LoRA|says r=|has no r"):
        session.check_adapter(adapter)


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["q_proj", "norm"]},
        {"rank_pattern": {"q_proj": 6}},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"use_dora": True},
    ],
)
def test_what_peft_itself_fails_at_is_undone_whole(
    folder: Path, tmp_path: Path, adapter: Path, others: int, changes: dict[str, Any]
) -> None:
    """As if the checks had let it through."""
    session = LoraHfSession(folder, SLOTS, MAX_SEQ_LEN)
    for seed in range(others):
        session.add_adapter("other", make_adapter(tmp_path / "other", folder, seed))
    names = [None, *(["other"] * others)]
    before = [logits(session, name) for name in names]
    change_config(adapter, CONFIG, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "check_adapter", lambda folder: None)
        patch.setattr(PeftModel, "load_adapter", failing_after(PeftModel.load_adapter))
        with pytest.raises(ValueError, match="PEFT cannot load"):
            session.add_adapter("bad", adapter)
    for name, wanted in zip(names, before, strict=True):
        assert (logits(session, name) == wanted).all()
    good = make_adapter(tmp_path / "good", folder, 3, PARTS)
    session.add_adapter("good", good)
    assert logits(session, "good") == pytest.approx(by_peft(folder, good), abs=1e-3)


def failing_after(work: Callable[..., Any]) -> Callable[..., Any]:
    def failing(*given: Any, **named: Any) -> Any:
        work(*given, **named)
        raise MemoryError("no memory")

    return failing


def test_an_adapter_is_read_again_when_its_files_have_changed(
    session: LoraHfSession, adapter: Path, tmp_path: Path
) -> None:
    session.check_adapter(adapter)
    shutil.copytree(adapter, tmp_path / "copy")
    change_config(adapter, CONFIG, r=8)
    with pytest.raises(ValueError, match="correct r"):
        session.add_adapter("changed", adapter)
    config = json.loads((tmp_path / "copy" / CONFIG).read_text())
    assert config["r"] == 4
