"""A cross-encoder in PyTorch: two texts as one row of token ids in, one score out.

A folder whose architecture is `…ForSequenceClassification` with one label is one, such as the
rerankers of sentence-transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.hf.encoder import HfEncoder

SCORING = "ForSequenceClassification"
# What sentence-transformers does with a logit, by the name of torch's class.
ACTIVATIONS = ("Sigmoid", "Identity")


def scores(folder: Path) -> bool:
    """Whether a folder holds a model that scores texts.

    Raises:
        DataError: there is no config.json.
    """
    names = _read(folder / "config.json").get("architectures") or []
    return any(name.endswith(SCORING) for name in names)


def activation_of(folder: Path) -> str:
    """What turns a logit into a score, as sentence-transformers reads it: Sigmoid or Identity.

    Raises:
        DataError: the folder asks for another function.
    """
    config = _read(folder / "config.json")
    library = folder / "config_sentence_transformers.json"
    said = [
        (config.get("sentence_transformers") or {}).get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
        _read(library).get("activation_fn") if library.is_file() else None,
    ]
    name = next((text for text in said if text), "Sigmoid").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise DataError(
            f"{folder} scores with {name}, which is not supported: choose a model with "
            f"{' or '.join(ACTIVATIONS)}"
        )
    return name


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read ({error}): give the folder of an HF model"
        ) from error
    return found if isinstance(found, dict) else {}


class HfScorer(HfEncoder):
    """An engine (base.ScoringEngine) that only scores texts.

    Args:
        max_queue: calls that may wait.

    Raises:
        DataError: transformers cannot load the folder, or its model has several labels.
    """

    features = frozenset({"scores"})

    def __init__(self, folder: Path, *, max_queue: int) -> None:
        from transformers import AutoModelForSequenceClassification

        activation_of(folder)
        labels = _read(folder / "config.json").get("id2label") or {}
        if len(labels) != 1:
            raise DataError(
                f"{folder / 'config.json'} names {len(labels)} labels (id2label), and a reranker "
                "has one: give a reranker"
            )
        super().__init__(folder, AutoModelForSequenceClassification, max_queue=max_queue)
        config = self._model.config
        self._has_types = getattr(config, "type_vocab_size", 0) > 1
        self._padding = config.pad_token_id or 0

    async def score(
        self, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> list[float]:
        """The logit of each row of token ids; types: 0 for the first text's tokens, 1 for the
        second's.

        Raises:
            QueueFull: the queue is full. EngineFailed: a score is not finite.
            ValueError: a token is not in the model's vocabulary.
        """
        return await self._run(texts, types)

    def _pass(self, *columns: list[list[int]]) -> Any:
        ids, types = columns
        given = {"input_ids": self._padded(ids, self._padding)}
        given["attention_mask"] = self._padded([[1] * len(row) for row in ids])
        if self._has_types:
            given["token_type_ids"] = self._padded(types)
        return self._model(**given).logits.float()[:, 0].cpu()
