"""What the project's pages name is there: linked files and headings, modules and paths."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?!\w+:)([^()\s#]*)(?:#([^()\s]*))?\)")
_MODULE = re.compile(r"python -m ((?:pipeline|tools|bench)[\w.]*)")
_PATH = re.compile(r"`([\w/]+/[\w/.]*\.(?:py|ya?ml|json|sh|txt))`")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PLACES = ("*.md", ".github/*.md", "docs/*.md", "data/*.md", "data/*/*.md", "bench/*/README.md")


def pages() -> list[str]:
    return [str(f.relative_to(ROOT)) for place in PLACES for f in sorted(ROOT.glob(place))]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that code hosts and the site give a page's headings."""
    text = _CODE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings)


@pytest.mark.parametrize("name", pages())
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in _LINK.findall(_CODE.sub("", page.read_text())):
        file = (page.parent / target) if target else page
        assert file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(file.resolve()), f"{name}: {target}#{anchor}"


@pytest.mark.parametrize("name", pages())
def test_modules_of_commands_exist(name: str) -> None:
    for module in _MODULE.findall((ROOT / name).read_text()):
        place = ROOT / module.rstrip(".").replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


@pytest.mark.parametrize("name", [page for page in pages() if page != "CHANGELOG.md"])
def test_named_files_exist(name: str) -> None:
    """A path is relative to the checkout or, as most pages write it, to the package."""
    places = [*ROOT.iterdir(), *(ROOT / "pipeline").iterdir()]
    folders = {place.name for place in places if place.is_dir()} - {"artifacts"}
    named = [p for p in _PATH.findall((ROOT / name).read_text()) if p.split("/")[0] in folders]
    missing = [p for p in named if not (ROOT / p).exists() and not (ROOT / "pipeline" / p).exists()]
    assert missing == []


def test_a_missing_heading_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n\n```sh\n# not this\n```\n\n## An `8B` model, by hand\n")
    assert anchors(page) == {"one-two", "an-8b-model-by-hand"}
