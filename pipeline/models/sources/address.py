"""What `model.path` and `data.folder` may name beside a folder, and how it is written.

parse("hf://Qwen/Qwen3-8B@main")              # Address("hf", "Qwen/Qwen3-8B", "main")
parse("file:///models/a%20b")                 # Path("/models/a b")
parse("hf://datasets/org/chats", use=DATA)    # Address("hf", "datasets/org/chats")
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.core.errors import ConfigError, short

SCHEMES = {
    "hf": "hf://ORG/NAME@REVISION",
    "s3": "s3://BUCKET/PREFIX",
    "gs": "gs://BUCKET/PREFIX",
    "ngc": "ngc://ORG/TEAM/MODEL:VERSION",
    "file": "file:///FOLDER",
}
NEMO = "nemo"  # of a checkpoint of NeMo on this machine, in records; settings name its path
DATASETS = "datasets/"  # before the names of data sets, as the hub's own client has it
_URL = re.compile(r"^([a-z][a-z0-9+.-]*):/+(.*)$", re.IGNORECASE | re.DOTALL)
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
_HUB_NAME = re.compile(rf"^(?:{_NAME}/)?{_NAME}$", re.ASCII)
_REVISION = re.compile(r"^[\w./-]{1,200}$", re.ASCII)
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9._-]{1,200}(/[^/\0]+)*$", re.IGNORECASE)


@dataclass(frozen=True)
class Use:
    """What addresses are for. setting: where they stand. what: they name. schemes: forms of them.

    prefix: before the names of the hub. example: of such a name.
    """

    setting: str
    what: str
    schemes: Mapping[str, str]
    prefix: str
    example: str

    @property
    def forms(self) -> str:
        """What a message offers, without NVIDIA's registry, which its own client fetches from."""
        return "a folder, or one of " + ", ".join(f for s, f in self.schemes.items() if s != "ngc")


MODEL = Use("model.path", "model", SCHEMES, "", "Qwen/Qwen3-8B")
DATA = Use(
    "data.folder",
    "data set",
    {s: f for s, f in SCHEMES.items() if s != "ngc"} | {"hf": f"hf://{DATASETS}ORG/NAME@REVISION"},
    DATASETS,
    "HuggingFaceH4/ultrachat_200k",
)


@dataclass(frozen=True)
class Address:
    """A place that files are fetched from. revision: as given; None: the newest one."""

    scheme: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_source(text: object) -> bool:
    """Whether a setting is a URL, and not the path of a folder."""
    return isinstance(text, str) and bool(_URL.match(text))


def parse(text: str, use: Use = MODEL) -> Address | Path:
    """An address, or the folder that a file:// address means.

    Raises:
        ConfigError: it has another form; the message lists the forms.
    """
    found = _URL.match(text)
    scheme, rest = (found[1].lower(), found[2].rstrip("/")) if found else ("", "")
    given = f"{use.setting}={short(text, 120)}"
    if scheme == "file":
        return _folder(text, given)
    if scheme == NEMO:
        return Address(NEMO, f"/{rest}")
    if scheme in ("http", "https"):
        raise ConfigError(f"{given} is a web page: {_typed(rest, use)}")
    if scheme not in use.schemes:
        raise ConfigError(f"{given} is not a known kind of address: give {use.forms}")
    if scheme == "hf":
        return _hub(rest, given, use)
    if not _BUCKET.match(rest) or {"", ".", ".."} & set(rest.split("/")):
        raise ConfigError(f"{given} is not of the form {use.schemes[scheme]}")
    return Address(scheme, rest)


def _folder(text: str, given: str) -> Path:
    host, slash, path = text[len("file:") :].removeprefix("//").partition("/")
    if text[len("file:") :][:2] != "//" or host not in ("", "localhost") or not path:
        raise ConfigError(f"{given} is not of the form {SCHEMES['file']}")
    return Path(unquote(slash + path))


def _hub(rest: str, given: str, use: Use) -> Address:
    full, at, revision = rest.partition("@")
    name = full.removeprefix(use.prefix)
    is_named = bool(_HUB_NAME.match(name)) and not (at and not _REVISION.match(revision))
    if is_named and full.startswith(use.prefix):
        return Address("hf", full, revision or None)
    if is_named and full != use.prefix.rstrip("/"):
        raise ConfigError(f"{given} names a model: for a data set type hf://{use.prefix}{rest}")
    example = f"hf://{use.prefix}{use.example}"
    raise ConfigError(
        f"{given} is not of the form {use.schemes['hf']}, as in {example} or {example}@main (the "
        "revision is a branch, a tag or a commit)"
    )


def _typed(page: str, use: Use) -> str:
    """The line to type in place of the address of a page."""
    path = page.partition("/")[2].removeprefix(use.prefix)
    parts = path.split("/")
    name = "/".join(parts[:2])
    if len(parts) >= 2 and _HUB_NAME.match(name):
        revision = f"@{parts[3]}" if len(parts) > 3 and parts[2] == "tree" else ""
        return f"for a {use.what} on the hub type {use.setting}=hf://{use.prefix}{name}{revision}"
    return f"give {use.forms}"


def not_a_folder(path: Path) -> str:
    """What to do where `model.path` names a folder that is not there; "" without a better idea.

    >>> not_a_folder(Path("meta-llama/Llama-3.1-8B"))
    'for the model of that name on the hub type model.path=hf://meta-llama/Llama-3.1-8B'
    """
    text = str(path)
    if not _HUB_NAME.match(text) or "/" not in text or path.parent.exists():
        return ""
    return f"for the model of that name on the hub type model.path=hf://{text}"
