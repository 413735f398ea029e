"""What `model.path` may name beside a folder, and how it is written.

parse("hf://Qwen/Qwen3-8B@main")    # Address("hf", "Qwen/Qwen3-8B", "main")
parse("file:///models/a%20b")       # Path("/models/a b")
"""

from __future__ import annotations

import re
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
# What a message offers. NVIDIA's registry is left out: its own client fetches from there.
FORMS = "a folder, or one of " + ", ".join(f for s, f in SCHEMES.items() if s != "ngc")
_URL = re.compile(r"^([a-z][a-z0-9+.-]*):/+(.*)$", re.IGNORECASE | re.DOTALL)
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
_HUB_NAME = re.compile(rf"^(?:{_NAME}/)?{_NAME}$", re.ASCII)
_REVISION = re.compile(r"^[\w./-]{1,200}$", re.ASCII)
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9._-]{1,200}(/[^/\0]+)*$", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """A place that a model is fetched from. revision: as given; None: the newest one."""

    scheme: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_source(text: object) -> bool:
    """Whether a setting is a URL, and not the path of a folder."""
    return isinstance(text, str) and bool(_URL.match(text))


def parse(text: str) -> Address | Path:
    """An address, or the folder that a file:// address means.

    Raises:
        ConfigError: it has another form; the message lists the forms.
    """
    found = _URL.match(text)
    scheme, rest = (found[1].lower(), found[2].rstrip("/")) if found else ("", "")
    if scheme == "file":
        return _folder(text)
    if scheme == NEMO:
        return Address(NEMO, f"/{rest}")
    if scheme in ("http", "https"):
        raise ConfigError(f"model.path={short(text, 120)} is a web page: {_typed(rest)}")
    if scheme not in SCHEMES:
        raise ConfigError(f"model.path={short(text)} is not a known kind of address: give {FORMS}")
    if scheme == "hf":
        return _hub(text, rest)
    if not _BUCKET.match(rest) or {"", ".", ".."} & set(rest.split("/")):
        raise ConfigError(f"model.path={short(text)} is not of the form {SCHEMES[scheme]}")
    return Address(scheme, rest)


def _folder(text: str) -> Path:
    host, slash, path = text[len("file:") :].removeprefix("//").partition("/")
    if text[len("file:") :][:2] != "//" or host not in ("", "localhost") or not path:
        raise ConfigError(f"model.path={short(text)} is not of the form {SCHEMES['file']}")
    return Path(unquote(slash + path))


def _hub(text: str, rest: str) -> Address:
    name, at, revision = rest.partition("@")
    if _HUB_NAME.match(name) and not (at and not _REVISION.match(revision)):
        return Address("hf", name, revision or None)
    raise ConfigError(
        f"model.path={short(text)} is not of the form {SCHEMES['hf']}, as in "
        "hf://Qwen/Qwen3-8B or hf://Qwen/Qwen3-8B@main (the revision is a branch, a tag or a "
        "commit)"
    )


def _typed(page: str) -> str:
    """The line to type in place of the address of a page."""
    parts = page.partition("/")[2].split("/")
    name = "/".join(parts[:2])
    if len(parts) >= 2 and _HUB_NAME.match(name):
        revision = f"@{parts[3]}" if len(parts) > 3 and parts[2] == "tree" else ""
        return f"for a model on the hub type model.path=hf://{name}{revision}"
    return f"give {FORMS}"


def not_a_folder(path: Path) -> str:
    """What to do where `model.path` names a folder that is not there; "" without a better idea.

    >>> not_a_folder(Path("meta-llama/Llama-3.1-8B"))
    'for the model of that name on the hub type model.path=hf://meta-llama/Llama-3.1-8B'
    """
    text = str(path)
    if not _HUB_NAME.match(text) or "/" not in text or path.parent.exists():
        return ""
    return f"for the model of that name on the hub type model.path=hf://{text}"
