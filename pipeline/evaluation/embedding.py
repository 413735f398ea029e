"""How near the meaning of two texts is: the cosine of their embeddings, by a local model.

The folder is one of sentence-transformers with safetensors. Modules of other libraries are refused:
sentence-transformers would run their code.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.evaluation.metrics import Answers

MODULES = ("Transformer", "Pooling", "Normalize")
_BATCH = 32


def check(folder: Path) -> None:
    """Refuse a folder that is no sentence-embedding model, or whose code or pickles would run.

    Raises:
        DataError: says what is wrong.
    """
    what = f"evaluate.embedder={folder}"
    try:
        modules = json.loads((folder / "modules.json").read_text())
        kinds = [str(module["type"]) for module in modules]
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{what} is no folder of a sentence-transformers model ({error}): give one that "
            "SentenceTransformer.save_pretrained wrote"
        ) from error
    for kind in kinds:
        owner, _, name = kind.rpartition(".")
        if name not in MODULES or owner.partition(".")[0] != "sentence_transformers":
            raise DataError(f"{what} asks for the module {kind}: choose a model that has only "
                            f"{', '.join(MODULES)}")  # fmt: skip
    if "auto_map" in config:
        raise DataError(f"{what} brings code of its own, which is never run: choose another model")
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            f"{what} has no .safetensors weights: convert them, or choose another model"
        )


def similarity(folder: Path) -> Callable[[Answers], list[float]]:
    """Metric.values: cosine of answer and expected answer, -1 to 1.

    Raises:
        DataError: the folder is no sentence-embedding model.
    """
    check(folder)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"evaluate.embedder={folder} cannot be loaded ({error})") from error

    def embed(texts: Sequence[str]) -> Any:
        """[texts, dimensions], each of length 1."""
        return model.encode(
            list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
        )

    def values(answers: Answers) -> list[float]:
        found = (embed(answers.texts) * embed(answers.expected)).sum(axis=1)
        return [float(value) for value in found]

    return values
