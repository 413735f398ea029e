"""The rule that a dataset and a model render conversations alike, checked where the two meet."""

from pathlib import Path

from pipeline.core.artifact import Artifact
from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat


def shared_chat(dataset: Artifact, model: Path) -> Chat:
    """The chat of a model folder, if the dataset was rendered with the same one.

    Raises:
        DataError: its template or tokenizer is another.
    """
    ours, theirs = Chat.load(model), Chat.load(dataset.path / "tokenizer")
    if ours.sha256 != theirs.sha256:
        raise DataError(
            f"{model} has another tokenizer or chat template than {dataset.path} was rendered "
            "with: run `python -m pipeline stage=prepare` again with this model.path"
        )
    return ours
