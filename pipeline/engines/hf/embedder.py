"""An embedding model in PyTorch: token ids in, one vector for each text out.

The folder's sentence-transformers files (modules.json, 1_Pooling/config.json) say how the tokens'
vectors are pooled. Without them the mean is used, normalized to length 1 as OpenAI's embeddings
are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.hf.encoder import HfEncoder
from pipeline.engines.hf.scorer import scores

MODULES = "modules.json"
# Kinds of pooling in sentence-transformers, by the name of their switch.
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
# Ends of the names of architectures that generate text, including vision-language models.
WRITING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Pooling:
    """kind: mean, cls or last. normalized: whether vectors have length 1."""

    kind: str
    normalized: bool


def read_pooling(folder: Path) -> Pooling:
    """The pooling from the folder's sentence-transformers files.

    Raises:
        DataError: they ask for a module or a pooling that is not supported.
    """
    if not (folder / MODULES).is_file():
        return Pooling("mean", normalized=True)
    modules = json.loads((folder / MODULES).read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise DataError(
            f"{folder / MODULES} asks for {', '.join(sorted(unknown))}, which is not supported: "
            "choose an embedding model that has only Transformer, Pooling and Normalize"
        )
    place = next((m["path"] for m in modules if m["type"].endswith("Pooling")), None)
    if place is None:
        raise DataError(f"{folder / MODULES} names no Pooling: the folder is not complete")
    settings = json.loads((folder / place / "config.json").read_text())
    asked = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    if len(asked) != 1 or asked[0] not in POOLINGS:
        raise DataError(
            f"{folder / place / 'config.json'} asks for {' and '.join(asked) or 'no pooling'}: "
            f"choose a model with one of {', '.join(POOLINGS)}"
        )
    return Pooling(POOLINGS[asked[0]], normalized="Normalize" in kinds)


def embeds(folder: Path) -> bool:
    """Whether a folder holds an embedding model: it is not a decoder, or its files define pooling.

    Raises:
        DataError: there is no config.json.
    """
    if scores(folder):
        return False
    if (folder / MODULES).is_file():
        return True
    file = folder / "config.json"
    try:
        names = json.loads(file.read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} cannot be read ({error}): give the folder of an HF model"
        ) from error
    return bool(names) and not any(name.endswith(WRITING) for name in names)


class HfEmbedder(HfEncoder):
    """An engine (base.Engine) that only computes embeddings.

    Args:
        max_queue: calls that may wait.

    Raises:
        DataError: transformers cannot load the folder, or its pooling is not supported.
    """

    features = frozenset({"embeddings"})

    def __init__(self, folder: Path, *, max_queue: int) -> None:
        from transformers import AutoModel

        self._pooling = read_pooling(folder)
        super().__init__(folder, AutoModel, max_queue=max_queue)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector for each text, given as token ids.

        Raises:
            QueueFull: the queue is full. EngineFailed: the vectors are not finite.
            ValueError: a token is not in the model's vocabulary.
        """
        return await self._run(prompts)

    def compute(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The vectors, in the thread that calls; not from several threads at a time.

        Raises:
            EngineFailed: the vectors are not finite.
        """
        return self._batches(prompts)

    def _pass(self, *columns: list[list[int]]) -> Any:
        import torch

        (rows,) = columns
        device = self._model.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(len(rows[0]), device=device) < lengths[:, None]
        states = self._model(input_ids=self._padded(rows), attention_mask=mask.long())
        states = states.last_hidden_state.float()
        if self._pooling.kind == "mean":
            vectors = (states * mask[..., None]).sum(1) / lengths[:, None]
        elif self._pooling.kind == "cls":
            vectors = states[:, 0]
        else:
            vectors = states[torch.arange(len(rows)), lengths - 1]
        if self._pooling.normalized:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu()
