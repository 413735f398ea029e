"""Where the package is, and where the user's project is.

The package is code and defaults; it may be installed read-only. A project is a folder with dvc.yaml
and params.yaml: data, artifacts and settings of a user. `pipeline init` makes one, and a checkout
of the source is one too. Commands work in the project's folder, so relative paths in settings are
relative to it.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# What `import pipeline` is found in: a checkout of the source, or site-packages.
ROOT = PACKAGE.parent

# A wheel has the defaults and the example in the package, a checkout has them beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else ROOT / "conf"
EXAMPLE = PACKAGE / "example" if (PACKAGE / "example").is_dir() else ROOT

GRAPH_FILE, PARAMS_FILE = "dvc.yaml", "params.yaml"
MANIFEST = "manifest.json"  # of an artifact, in its folder


def find_project(start: Path) -> Path | None:
    """The project that a folder belongs to: the folder itself or the nearest one above; else None.

    Both files are asked for: a folder above may have a dvc.yaml of something else.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / GRAPH_FILE).is_file() and (folder / PARAMS_FILE).is_file():
            return folder
    return None


def keep_out_of_git(folder: Path) -> None:
    """Have git ignore a folder of conversations, wherever it lies: they are not to be published.

    Raises:
        OSError: it cannot be written.
    """
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("# Conversations of users are not published with the code.\n*\n")


def graph_file() -> Path:
    """dvc.yaml of the working folder's project, or the one that `pipeline init` would write."""
    return (find_project(Path.cwd()) or EXAMPLE) / GRAPH_FILE


def conf_folders() -> list[Path]:
    """Folders with groups and options: the package's defaults, then what the project adds to them.

    A project whose conf/ has a config.yaml of its own, as a checkout, uses that alone.
    """
    project = find_project(Path.cwd())
    own = project / "conf" if project else CONF
    if own.resolve() == CONF or not own.is_dir():
        return [CONF]
    return [own] if (own / "config.yaml").is_file() else [CONF, own]


def options_of(group: str) -> dict[str, Path]:
    """The files of a group's options, by the option's name."""
    files = [file for folder in conf_folders() for file in (folder / group).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}
