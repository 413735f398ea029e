"""The rule that a dataset and a model render conversations alike, checked where the two meet."""

from pathlib import Path

from pipeline.artifact import Artifact
from pipeline.chat import Chat
from pipeline.errors import DataError


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
