"""A dataset and a model must render conversations in the same way."""

from pathlib import Path

from pipeline.core.artifact import Artifact
from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat


def shared_chat(dataset: Artifact, model: Path) -> Chat:
    """The chat of a model folder, which must be the one that the dataset was rendered with.

    Raises:
        DataError: the template or the tokenizer is a different one.
    """
    ours, theirs = Chat.load(model), Chat.load(dataset.path / "tokenizer")
    if ours.sha256 != theirs.sha256:
        raise DataError(
            f"{dataset.path} was rendered with another tokenizer or chat template than {model} "
            "has: run `python -m pipeline stage=prepare` again with this model.path"
        )
    return ours
