"""LoRA adapters in the PEFT library's format: every setting and every tensor is checked.

Adapters share the model with everybody's requests. So an adapter is taken only if it is known to be
right: each key of adapter_config.json is one that the engine follows or that changes nothing, and
the weights are exactly those that the settings say. Anything else is refused by name, before the
model is touched.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's, before the names of modules
MERGE = "merge it with `python -m pipeline stage=merge` and serve the merged model"
DTYPES = ("F32", "F16", "BF16")
MOST_BYTES = 1 << 20  # of adapter_config.json

Check = Callable[[Any], bool]


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    one = isinstance(value, str) and value != ""
    return one or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _are_layers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(i) is int for i in value))


def _maps_to(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _anything(value: Any) -> bool:
    return True


# What decides the weights' places and the scale of each. PEFT follows these.
FOLLOWED: Mapping[str, Check] = {
    "r": _is_rank,
    "lora_alpha": _is_number,
    "target_modules": _are_names,
    "exclude_modules": _are_names,
    "layers_to_transform": _are_layers,
    "layers_pattern": _are_names,
    "rank_pattern": _maps_to(_is_rank),
    "alpha_pattern": _maps_to(_is_number),
    "use_rslora": _one_of(True, False),
    "lora_bias": _one_of(True, False),
}
# What changes no answer with these values: notes, and settings of training. Other values, which
# would change one, are refused.
WITHOUT_EFFECT: Mapping[str, Check] = {
    "peft_type": _one_of("LORA"),
    "task_type": _one_of("CAUSAL_LM"),
    "auto_mapping": _anything,
    "peft_version": _anything,
    "base_model_name_or_path": _anything,
    "revision": _anything,
    "inference_mode": _one_of(True, False),
    "lora_dropout": _is_number,
    # Others change the model's own weights when the adapter is loaded, or need data to do so.
    "init_lora_weights": _one_of(True, False, "gaussian", "orthogonal"),
    "bias": _one_of("none"),
    "fan_in_fan_out": _one_of(False),
    "use_dora": _one_of(False),
    "use_qalora": _one_of(False),
    "qalora_group_size": _anything,
    "megatron_core": _anything,
    "ensure_weight_tying": _one_of(False),
    "runtime_config": _one_of({"ephemeral_gpu_offload": False}),
}
# Other kinds of adapters, and LoRA with more than its two matrices. Only empty values are taken.
EMPTY_ONLY = frozenset(
    "modules_to_save trainable_token_indices target_parameters layer_replication loftq_config "
    "eva_config corda_config lora_ga_config velora_config alora_invocation_tokens "
    "monteclora_config use_bdlora arrow_config kasa_config megatron_config".split()
)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of an adapter, of which each is known to be right.

    Raises:
        ValueError: names the key that is not.
    """
    file = folder / CONFIG
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"{CONFIG} has more than {MOST_BYTES} bytes")
        settings = json.loads(text)
        if not isinstance(settings, dict) or not (folder / WEIGHTS).is_file():
            raise ValueError(f"{CONFIG} is no JSON object, or there is no {WEIGHTS}")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder} is not an adapter in the PEFT library's format: {error}"
        ) from error
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ValueError(
            f"{folder} is not plain LoRA, the only kind that can differ from request to request: "
            + MERGE
        )
    for key, value in settings.items():
        if key in ("r", "lora_alpha", "peft_type", "target_modules") or value is not None:
            _require_known(file, key, value)
    for key in ("r", "target_modules"):
        if settings.get(key) is None:
            raise ValueError(f"{file} has no {key}: save the adapter again with the PEFT library")
    return settings


def _require_known(file: Path, key: str, value: Any) -> None:
    check = FOLLOWED.get(key) or WITHOUT_EFFECT.get(key)
    if check is None and key in EMPTY_ONLY:
        check = _one_of(False, {}, [])
    if check is None:
        raise ValueError(
            f"{file} has the key {key!r}, which this server does not know: leave it out if it "
            f"changes nothing, or {MERGE}"
        )
    if not check(value):
        raise ValueError(
            f"{file} says {key}={json.dumps(value)[:80]}, which cannot be served beside other "
            f"adapters: {MERGE}"
        )


def refuse_patterns(folder: Path, settings: Mapping[str, Any], runtime: str) -> None:
    """Refuse settings that only our own engine follows.

    Raises:
        ValueError: names the key.
    """
    for key in ("rank_pattern", "alpha_pattern", "lora_bias"):
        if settings.get(key):
            raise ValueError(
                f"{folder / CONFIG} has {key}, which {runtime} ignores: serve it with "
                f"engine.name=hf, or {MERGE}"
            )
