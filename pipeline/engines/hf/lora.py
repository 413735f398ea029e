"""LoRA adapters on a model in PyTorch, with the PEFT library: each row of a batch has its own."""

import copy
import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.engines.hf.graphs import Pass
from pipeline.engines.hf.lora_weights import check_weights
from pipeline.engines.hf.session import HfSession
from pipeline.engines.lora_settings import CONFIG, WEIGHTS, read_settings

NO_ADAPTER = "__base__"  # PEFT's name for the model without one


class LoraHfSession(HfSession):
    """An HfSession with LoRA adapters (model_runner.LoraModelRunner)."""

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        super().__init__(folder, slots, max_seq_len)
        # Names and shapes before PEFT wraps any of them.
        modules = {name: module for name, module in self._model.named_modules() if name}
        self._linear = {
            name: (module.weight.shape[0], module.weight.shape[1])
            for name, module in modules.items()
            if _is_linear(module)
        }
        self._others = frozenset(modules.keys() - self._linear.keys())
        self._checked: list[tuple[Any, ...]] | None = None  # the adapter that was right last
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

    def check_adapter(self, folder: Path) -> None:
        """Refuse an adapter that is not known to be right for this model.

        Raises:
            ValueError: names what is wrong.
        """
        found = _version(folder)
        if found != self._checked:
            check_weights(folder, read_settings(folder), self._linear, self._others)
            self._checked = found

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter in the PEFT library's format, or leave the model as it was.

        Raises:
            ValueError: it is not a LoRA adapter, or does not fit this model.
        """
        self.check_adapter(folder)
        from peft import PeftModel

        given, base = f"adapter{next(self._ids)}", self._model
        before = _Structure(base)
        try:
            if self._adapters:
                self._model.load_adapter(folder, adapter_name=given, local_files_only=True)
            else:
                self._model = PeftModel.from_pretrained(
                    base, folder, adapter_name=given, local_files_only=True
                ).eval()
        except Exception as error:  # PEFT raises errors of many kinds
            before.restore()
            self._model = base
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

    def _pass(self, rows: Sequence[int]) -> Pass:
        plain = all(self._rows[row] == NO_ADAPTER for row in rows)
        return Pass(self._model, self._options(rows), plain)


def _version(folder: Path) -> list[tuple[Any, ...]]:
    """Identity of an adapter's files, which changes when one is written."""
    found = []
    for name in (CONFIG, WEIGHTS):
        with suppress(OSError):
            stat = (folder / name).stat()
            found.append((folder, name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


class _Structure:
    """Every module of a model, with its attributes and children, but not the values of weights.

    PEFT changes a model in many places, and cannot undo it all. It changes no weight's value for
    the settings that lora_settings.py lets through.
    """

    def __init__(self, model: Any) -> None:
        self._attributes = [(module, _copied(vars(module))) for module in model.modules()]

    def restore(self) -> None:
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes, with copies of those that are containers."""
    return {
        name: copy.copy(value) if isinstance(value, dict | list | set) else value
        for name, value in attributes.items()
    }


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
