"""LoRA adapters on a model in PyTorch, by the PEFT library: each row of a batch names its own."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engines.hf.session import HfSession

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NO_ADAPTER = "__base__"  # PEFT's name for the model without one
PREFIX = "base_model.model."  # PEFT's, before the names of modules


class AdaptedHfSession(HfSession):
    """An HfSession with adapters (step_model.AdaptedModel)."""

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        super().__init__(folder, slots, max_seq_len)
        self._adapters: dict[str, str] = {}  # PEFT's names of them: it takes no "." in one
        self._ids = itertools.count()
        self._rows = [NO_ADAPTER] * slots  # the adapter of each row, by PEFT's name

    def use_adapter(self, row: int, name: str | None) -> None:
        """Answer a row's next sequence with an adapter; None: with the model itself."""
        self._rows[row] = self._adapters[name] if name else NO_ADAPTER

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens, and its adapter, to another row."""
        super().move(source, target, length)
        self._rows[target] = self._rows[source]

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter in the PEFT library's form.

        Raises:
            ValueError: it is not one, or not of this model's shape.
        """
        check_adapter(self._model, folder)
        from peft import PeftModel

        given, base = f"adapter{next(self._ids)}", self._model
        try:
            if self._adapters:
                self._model.load_adapter(folder, adapter_name=given, local_files_only=True)
            else:
                self._model = PeftModel.from_pretrained(
                    base, folder, adapter_name=given, local_files_only=True
                ).eval()
        except Exception as error:  # PEFT's are of all kinds
            _undo(base, given, whole=not self._adapters)
            raise ValueError(f"PEFT does not take the adapter in {folder}: {error}") from error
        self._adapters[name] = given

    def remove_adapter(self, name: str) -> None:
        """Let go of an adapter that no row in use names."""
        given = self._adapters.pop(name)
        if self._adapters:
            # PEFT looks its active one up at each step.
            self._model.set_adapter(next(iter(self._adapters.values())))
            self._model.delete_adapter(given)
        else:  # PEFT runs no model that has had adapters and has none
            self._model = self._model.unload()

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        if not self._adapters:
            return {}
        return {"adapter_names": [self._rows[row] for row in rows]}


def _undo(model: Any, adapter: str, *, whole: bool) -> None:
    """Take out of a model what PEFT has put there of an adapter that it could not load.

    whole: its layers, too, which no other adapter uses.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        if whole:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        else:
            layer.delete_adapter(adapter)
    if whole:
        vars(model).pop("peft_config", None)
    else:
        model.peft_config.pop(adapter, None)


def check_adapter(model: Any, folder: Path) -> None:
    """Refuse what is no LoRA adapter of a model's shape, before anything of it is loaded.

    Raises:
        ValueError: names what is wrong.
    """
    from safetensors import safe_open

    try:
        settings = json.loads((folder / CONFIG).read_text())
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of files, of JSON, of safetensors: they share no base
        raise ValueError(f"{folder} is no adapter in the PEFT library's form: {error}") from error
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ValueError(
            f"{folder} is not plain LoRA, and only that can be switched from row to row: merge it "
            "with `python -m pipeline stage=merge` and serve the merged model"
        )
    # In a model that has adapters PEFT adds to the names, and wraps what is adapted.
    linear = {
        name.removeprefix(PREFIX).removesuffix(".base_layer"): tuple(module.weight.shape)
        for name, module in model.named_modules()
        if _is_linear(module)
    }
    ranks = {settings.get("r"), *(settings.get("rank_pattern") or {}).values()}
    for name, shape in shapes.items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        wanted = linear.get(module)
        if wanted is None:
            raise ValueError(f"{folder} adapts {module or name}, which the model does not have")
        expected = wanted[1] if part.startswith("A") else wanted[0]
        found = shape[1] if part.startswith("A") else shape[0]
        if found != expected:
            raise ValueError(
                f"{folder} was made for another model: {module} has {expected} "
                f"{'inputs' if part.startswith('A') else 'outputs'}, and the adapter {found}"
            )
        rank = shape[0] if part.startswith("A") else shape[-1]
        if part.endswith(".weight") and rank not in ranks:
            said = ", ".join(map(str, sorted(ranks, key=str)))
            raise ValueError(
                f"{folder / CONFIG} says r={said}, and {module} in {WEIGHTS} is of rank {rank}: "
                "mend it, or save the adapter again"
            )


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
