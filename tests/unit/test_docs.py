"""Links in the project's pages lead somewhere: files exist, and so do the headings in them."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?!\w+:)([^()\s#]*)(?:#([^()\s]*))?\)")
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


def test_a_missing_heading_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n\n```sh\n# not this\n```\n\n## An `8B` model, by hand\n")
    assert anchors(page) == {"one-two", "an-8b-model-by-hand"}
