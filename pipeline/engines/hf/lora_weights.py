"""The tensors of a LoRA adapter: each name, shape and type, before the model is touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engines.lora_settings import CONFIG, DTYPES, FOLLOWED, PREFIX, WEIGHTS


def check_weights(
    folder: Path,
    settings: Mapping[str, Any],
    linear: Mapping[str, tuple[int, int]],
    others: frozenset[str] = frozenset(),
) -> None:
    """Refuse weights that are not exactly those that the settings say.

    Args:
        linear: outputs and inputs of each linear layer of the model, by name.
        others: names of its other modules, which cannot have an adapter.

    Raises:
        ValueError: names the tensor or the module.
    """
    import torch
    from safetensors import safe_open

    wanted = _expected(folder, settings, linear, others)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            _compare(folder, shapes, wanted, linear)
            for name in sorted(names):
                if dtypes[name] not in DTYPES:
                    raise ValueError(
                        f"{name} in {folder / WEIGHTS} is of type {dtypes[name]}: save it as "
                        "float32, float16 or bfloat16"
                    )
                if not bool(torch.isfinite(file.get_tensor(name).float()).all()):
                    raise ValueError(
                        f"{name} in {folder / WEIGHTS} has values that are not finite: train the "
                        "adapter again with a lower learning rate"
                    )
    except ValueError:
        raise
    except Exception as error:  # safetensors' own has no common base class
        raise ValueError(
            f"{folder} is not an adapter in the PEFT library's format: {error}"
        ) from error


def _expected(
    folder: Path,
    settings: Mapping[str, Any],
    linear: Mapping[str, tuple[int, int]],
    others: frozenset[str],
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that PEFT would make for the settings, by its name."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    used = {key: value for key, value in settings.items() if key in FOLLOWED and value is not None}
    every = used["target_modules"] == "all-linear"  # PEFT's name for all but the output layer
    try:
        config: Any = LoraConfig(**used)
        found = {
            name
            for name in (*linear, *others)
            if (every and name in linear and name != "lm_head")
            or (not every and check_target_module_exists(config, name))
        }
        if odd := sorted(found & others):
            raise ValueError(f"it adapts {odd[0]}, which is no linear layer")
        if not found:
            raise ValueError(f"target_modules={used['target_modules']} names none of its layers")
        shapes: dict[str, tuple[int, ...]] = {}
        for name in found:
            outputs, inputs = linear[name]
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, name), config.r)
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
            if config.lora_bias:
                shapes[f"{PREFIX}{name}.lora_B.bias"] = (outputs,)
    except Exception as error:  # of PEFT, or of a pattern that is no regular expression
        raise ValueError(f"{folder / CONFIG} does not fit this model: {error}") from error
    return shapes


def _compare(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    linear: Mapping[str, tuple[int, int]],
) -> None:
    for name in sorted(shapes.keys() - wanted.keys()):
        module = name.removeprefix(PREFIX).rpartition(".lora_")[0] or name
        if module not in linear:
            raise ValueError(f"{folder} adapts {module}, which the model does not have")
        raise ValueError(
            f"{WEIGHTS} in {folder} has {name}, and {CONFIG} leaves {module} out: correct "
            "target_modules and its like, or save the adapter again"
        )
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise ValueError(
            f"{CONFIG} in {folder} asks for {missing[0]}, which {WEIGHTS} does not have: correct "
            "target_modules and its like, or save the adapter again"
        )
    for name, shape in sorted(shapes.items()):
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if shape == wanted[name]:
            continue
        # The rank is A's first size and B's second; the others are the model's.
        size = -1 if part.startswith("A") else 0
        if len(shape) == len(wanted[name]) and shape[size] != wanted[name][size]:
            raise ValueError(
                f"{folder} was made for another model: {module} has {wanted[name][size]} "
                f"{'outputs' if size == 0 else 'inputs'}, and the adapter {shape[size]}"
            )
        raise ValueError(
            f"{folder / CONFIG} says that {name} has the shape {list(wanted[name])}, and in "
            f"{WEIGHTS} it has {list(shape)}: correct r and rank_pattern, or save the adapter again"
        )
