"""A NeMo checkpoint of somebody else's as a Hugging Face folder, as `model.path` takes it.

    python -m pipeline.training.from_nemo CHECKPOINT FOLDER [--tokenizer FOLDER]

CHECKPOINT is a folder of NeMo 2.0, or an archive of NeMo 1.0 (`.nemo`, or unpacked). A stage whose
model.path names one runs this itself (models/sources/checkpoints.py).

The folder computes what NeMo's model computes: their logits are compared, and the figures are in
FOLDER/conversion.json. Nothing that the checkpoint names is run, and no object in it is unpickled.
What cannot be proven is refused.
"""

import json
import shutil
import sys
from pathlib import Path

from pipeline.core.commands import Parser, run_command
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError
from pipeline.models.checks import check_folder

PROOF = "conversion.json"


def convert(
    checkpoint: Path, folder: Path, tokenizer: Path | None = None, *, weights: bool = True
) -> None:
    """Write the folder; tokenizer: where its files are, None: in the checkpoint.

    weights: with its weights; without, the folder has only what describes the model.

    Raises:
        ConfigError: the folder is there already. DataError: the checkpoint cannot be read, or its
            model is in no family's record. ProofFailed: the logits differ.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already: give a new folder")
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    scratch = folder.with_name(f"{folder.name}.unpacked")
    from pipeline.training.nemo import archives, foreign
    from pipeline.training.nemo.session import nemo_session

    try:
        with archives.unpacked(checkpoint, scratch) as found, nemo_session():
            shape = foreign.describe(found, work, tokenizer)
            proof = foreign.write_hf(found, shape, work) if weights else None
        if proof is not None:
            check_folder(work)
            content = {"source": checkpoint.resolve().name, "nemo_vs": proof}
            (work / PROOF).write_text(json.dumps(content, indent=1) + "\n")
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    get_console().print(f"[green]✓[/] {checkpoint} is in {folder} as a Hugging Face folder")


def main(words: list[str]) -> int:
    """Convert what the command line names; the exit code."""
    parser = Parser(prog="python -m pipeline.training.from_nemo")
    parser.add_argument(
        "checkpoint", type=Path, help="folder with weights/ and context/, or an archive (.nemo)"
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer's files")
    parser.add_argument("--description", action="store_true", help="without the weights")
    given = parser.parse_args(words)
    return run_command(
        lambda: convert(
            given.checkpoint, given.folder, given.tokenizer, weights=not given.description
        ),
        files=(given.checkpoint, given.folder, given.tokenizer),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
