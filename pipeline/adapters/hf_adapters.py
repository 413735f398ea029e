"""LoRA adapters on a model in PyTorch, by the PEFT library: each row of a batch names its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.adapters.hf_session import HfSession

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NO_ADAPTER = "__base__"  # PEFT's name for the model without one
PREFIX = "base_model.model."  # PEFT's, before the names of modules


class AdaptedHfSession(HfSession):
    """An HfSession with adapters (step_model.AdaptedModel)."""

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        super().__init__(folder, slots, max_seq_len)
        self._adapters: list[str] = []
        self._rows = [NO_ADAPTER] * slots  # the adapter of each row

    def use_adapter(self, row: int, name: str | None) -> None:
        """Answer a row's next sequence with an adapter; None: with the model itself."""
        self._rows[row] = name or NO_ADAPTER

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

        if isinstance(self._model, PeftModel):
            self._model.load_adapter(folder, adapter_name=name, local_files_only=True)
        else:
            self._model = PeftModel.from_pretrained(
                self._model, folder, adapter_name=name, local_files_only=True
            ).eval()
        self._adapters.append(name)

    def remove_adapter(self, name: str) -> None:
        """Let go of an adapter that no row in use names."""
        self._adapters.remove(name)
        if self._adapters:
            self._model.set_adapter(self._adapters[0])  # PEFT looks its active one up at each step
            self._model.delete_adapter(name)
        else:  # PEFT runs no model that has had adapters and has none
            self._model = self._model.unload()

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        if not self._adapters:
            return {}
        return {"adapter_names": [self._rows[row] for row in rows]}


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


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
