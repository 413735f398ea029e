"""The documentation site builds without warnings and loads nothing from other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    loads = r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//'
    assert [str(page) for page in pages if re.search(loads, page.read_text())] == []


def test_style_sheets_load_nothing_from_other_hosts(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    loads = r"url\(\s*[\"']?(?:https?:)?//|@import"
    assert [str(sheet) for sheet in sheets if re.search(loads, sheet.read_text())] == []


def test_linked_files_of_the_repository_are_taken_along(site: Path) -> None:
    page = (site / "benchmarks" / "index.html").read_text()
    (copy,) = set(re.findall(r'href="\.\./(repository/bench/results/cpu_chain\.json)"', page))
    assert (site / copy).read_bytes() == (ROOT / "bench/results/cpu_chain.json").read_bytes()
    assert 'href="../repository/bench/clients/"' in (site / "api" / "index.html").read_text()


def test_links_to_folders_become_text(site: Path) -> None:
    page = (site / "settings" / "index.html").read_text()
    assert "The defaults are in conf/." in page


def test_the_readme_is_the_index_page(site: Path) -> None:
    page = (site / "ARCHITECTURE" / "index.html").read_text()
    assert re.search(r'<a href="\.\./?">README</a>', page)
