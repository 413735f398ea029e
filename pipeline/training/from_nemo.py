"""A NeMo 2.0 checkpoint of somebody else's as a Hugging Face folder, which `model.path` takes.

    python -m pipeline.training.from_nemo CHECKPOINT FOLDER [--tokenizer FOLDER]

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


def convert(checkpoint: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the folder; tokenizer: where its files are, None: in the checkpoint.

    Raises:
        ConfigError: the folder is there already. DataError: the checkpoint cannot be read, or its
            model is in no family's record. ProofFailed: the logits differ.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already: give a new folder")
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    from pipeline.training.nemo import foreign
    from pipeline.training.nemo.session import nemo_session

    try:
        with nemo_session():
            shape = foreign.describe(checkpoint, work, tokenizer)
            proof = foreign.write_hf(checkpoint, shape, work)
        check_folder(work)
        content = {"source": str(checkpoint.resolve()), "nemo_vs": proof}
        (work / PROOF).write_text(json.dumps(content, indent=1) + "\n")
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    get_console().print(f"[green]✓[/] {checkpoint} is in {folder} as a Hugging Face folder")


def main(words: list[str]) -> int:
    """Convert what the command line names; the exit code."""
    parser = Parser(prog="python -m pipeline.training.from_nemo")
    parser.add_argument("checkpoint", type=Path, help="folder with weights/ and context/")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer's files")
    given = parser.parse_args(words)
    return run_command(
        lambda: convert(given.checkpoint, given.folder, given.tokenizer),
        files=(given.checkpoint, given.folder, given.tokenizer),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
