"""LoRA adapters on a model in PyTorch, with the PEFT library: each row of a batch has its own."""

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


class LoraHfSession(HfSession):
    """An HfSession with LoRA adapters (model_runner.LoraModelRunner)."""

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        super().__init__(folder, slots, max_seq_len)
        self._adapters: dict[str, str] = {}  # their names in PEFT, which allows no "."
        self._ids = itertools.count()
        self._rows = [NO_ADAPTER] * slots  # the adapter of each row, by its name in PEFT

    def use_adapter(self, row: int, name: str | None) -> None:
        """Use an adapter for a row's next sequence; None: the model itself."""
        self._rows[row] = self._adapters[name] if name else NO_ADAPTER

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens, and its adapter, to another row."""
        super().move(source, target, length)
        self._rows[target] = self._rows[source]

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter in the PEFT library's format.

        Raises:
            ValueError: it is not a LoRA adapter, or does not fit this model.
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
        except Exception as error:  # PEFT raises errors of many kinds
            _undo(base, given, whole=not self._adapters)
            raise ValueError(f"PEFT cannot load the adapter in {folder}: {error}") from error
        self._adapters[name] = given

    def remove_adapter(self, name: str) -> None:
        """Unload an adapter that no running sequence uses."""
        given = self._adapters.pop(name)
        if self._adapters:
            # PEFT looks up its active adapter at each step.
            self._model.set_adapter(next(iter(self._adapters.values())))
            self._model.delete_adapter(given)
        else:  # PEFT cannot run a model whose last adapter was deleted
            self._model = self._model.unload()

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        if not self._adapters:
            return {}
        return {"adapter_names": [self._rows[row] for row in rows]}


def _undo(model: Any, adapter: str, *, whole: bool) -> None:
    """Remove what PEFT has added to a model for an adapter that it could not load.

    whole: remove its layers, too, because no other adapter uses them.
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
    """Refuse an adapter that does not fit a model, before any of it is loaded.

    Raises:
        ValueError: names what is wrong.
    """
    from safetensors import safe_open

    try:
        settings = json.loads((folder / CONFIG).read_text())
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of files, JSON or safetensors: there is no common base class
        raise ValueError(
            f"{folder} is not an adapter in the PEFT library's format: {error}"
        ) from error
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ValueError(
            f"{folder} is not plain LoRA, the only kind that can differ from request to request: "
            "merge it with `python -m pipeline stage=merge` and serve the merged model"
        )
    # In a model with adapters PEFT changes the names and wraps the adapted layers.
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
                f"{folder / CONFIG} says r={said}, and {module} in {WEIGHTS} has rank {rank}: "
                "correct it, or save the adapter again"
            )


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
