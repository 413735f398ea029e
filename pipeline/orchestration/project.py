"""A user's project: finding it, and `pipeline init`, which makes one."""

import os
import shutil
from contextlib import chdir
from pathlib import Path

from pipeline.core.errors import ConfigError, ResourceError
from pipeline.core.paths import EXAMPLE, GRAPH_FILE, PARAMS_FILE, find_project

# What `pipeline init` copies: the graph, and an example that trains on a CPU in minutes.
COPIED = (
    GRAPH_FILE,
    ".dvcignore",
    "data/bank/sources",
    "data/bank/test.jsonl",
    "data/bank/train.jsonl",
    "data/bank/train_nemo.jsonl",
    "data/bank/train_prompt_completion.jsonl",
    "data/base_model/README.md",
    "data/base_model/config.json",
    "data/base_model/generation_config.json",
    "data/base_model/model.safetensors",
    "data/base_model/provenance.json",
    "data/base_model/tokenizer.json",
    "data/base_model/tokenizer_config.json",
)
IGNORED = """\
artifacts
.venv
__pycache__
data/*/recorded/
dvc_plots/
"""
# DVC runs experiments with --temp and --queue in a copy of the project in here, and deletes it.
COPIES = ".dvc/tmp/exps"
# Stages that read and write nothing of a project: they run in any folder.
ANYWHERE = (
    "canary", "clean", "config", "doctor", "graph", "inspect", "lineage", "plan", "profiles",
    "promote", "pull", "rollback", "serve", "synthesize", "verify", "versions",
)  # fmt: skip


def project_folder() -> Path:
    """The working folder's project.

    Raises:
        ConfigError: it is in none.
    """
    found = find_project(Path.cwd())
    if found is None:
        raise ConfigError(
            f"{Path.cwd()} is not in a project (a folder with {GRAPH_FILE} and {PARAMS_FILE}): "
            "run `python -m pipeline init DIR` to make one, or change to one"
        )
    return found


def enter_project(stage: str) -> None:
    """Make the project the working folder, so that the paths of settings are relative to it.

    Raises:
        ConfigError: there is none, and the stage needs one.
    """
    if stage not in ANYWHERE or find_project(Path.cwd()):
        os.chdir(project_folder())


def refuse_copy(folder: Path) -> None:
    """Raise ConfigError in a copy of the project that DVC deletes with all that stages make."""
    if f"/{COPIES}/" in f"{folder}/":
        raise ConfigError(
            "`dvc exp run` with --temp or --queue works in a copy of the project, which it deletes "
            "with its artifacts: run `dvc exp run` without them, or a sweep "
            "(`python -m pipeline stage=all --multirun …`)"
        )


def init(folder: Path) -> list[str]:
    """Write a project with example data and a small base model; the names of what was written.

    Raises:
        ConfigError: the folder is not empty, or is part of another project; nothing is written.
        ResourceError: it cannot be written.
    """
    from pipeline.orchestration import compose, dvc_files

    if folder.is_symlink() or folder.exists():
        if not folder.is_dir():
            raise ConfigError(f"{folder} is a file: give the name of a new or empty folder")
        if others := sorted(p.name for p in folder.iterdir() if p.name != ".git"):
            raise ConfigError(
                f"{folder} is not empty (it holds {others[0]}): give a new or empty folder"
            )
    if above := find_project(folder):
        raise ConfigError(f"{folder} is inside the project {above}: give a folder outside of it")
    compose.compose([])  # which may be refused, before anything is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (EXAMPLE / name).is_dir() else shutil.copyfile
            copy(EXAMPLE / name, target)
        (folder / ".gitignore").write_text(IGNORED)
        dvc_files.write_folder(folder)
        with chdir(folder):  # some defaults depend on the model, whose path is relative to it
            tree = compose.compose([])
        compose.write_params(folder, tree)  # last: with it the folder is a project
    except OSError as error:
        raise ResourceError(
            f"{error.filename or folder} cannot be written ({error.strerror}): free the disk or "
            "choose another folder, and remove what was begun"
        ) from error
    return [*COPIED, ".gitignore", ".dvc/config", PARAMS_FILE]
