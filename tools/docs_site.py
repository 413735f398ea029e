"""MkDocs hook: the site takes along the files of the repository that its pages link to.

On a code host a page of docs/ links to `../bench/results/x.json`. The site has no such folder: this
hook copies each linked file below `repository/` and points the links there. Links to a folder of
the repository become plain text. README.md is the site's index page.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPIES = "repository"  # where the site has files from outside docs/
# [text](target) and [text](target#part), but not of a scheme nor within the page.
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what pages that are added link to in turn."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        uri = waiting.pop()
        for target in _outside(uri):
            copy = f"{COPIES}/{target}"
            if not files.get_file_from_path(copy):
                files.append(File.generated(config, copy, abs_src_path=str(ROOT / target)))
                if copy.endswith(".md"):
                    waiting.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links out of docs/ to the copies."""

    def point(match: re.Match[str]) -> str:
        text, target, part = match[1], _target(page.file.src_uri, match[2]), match[3] or ""
        if (ROOT / target).is_dir():
            return text[1:-1]
        here = PurePosixPath(page.file.src_uri).parent.as_posix()
        return f"{text}({relpath(_uri(target), here)}{part})"

    return _LINK.sub(point, markdown)


def _outside(uri: str) -> Iterator[str]:
    """The files outside docs/ that a page of the site links to, as paths in the repository."""
    for match in _LINK.finditer((ROOT / _path(uri)).read_text()):
        target = _target(uri, match[2])
        if _uri(target).startswith(f"{COPIES}/") and (ROOT / target).is_file():
            yield target


def _path(uri: str) -> str:
    """A page's path in the repository."""
    outside = uri.startswith(f"{COPIES}/")
    return uri.removeprefix(f"{COPIES}/") if outside else f"docs/{uri}"


def _target(uri: str, link: str) -> str:
    """What a page's link points to, as a path in the repository."""
    return normpath(PurePosixPath(_path(uri)).parent / link)


def _uri(target: str) -> str:
    """Where the site has a file of the repository."""
    if target == "README.md":
        return "index.md"
    inside = target.startswith("docs/")
    return target.removeprefix("docs/") if inside else f"{COPIES}/{target}"
