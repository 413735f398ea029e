"""The records of replaced library code, against the libraries that are installed."""

import ast
import sys
from pathlib import Path

import pytest

from pipeline.core.hardware import installed_version
from pipeline.core.paths import ROOT
from tools import patches as tool

PATCHES = tool.patches()
INSTALLED = [name for name, patch in PATCHES.items() if installed_version(patch.distribution)]


@pytest.mark.parametrize("name", INSTALLED)
def test_the_installed_code_is_what_the_patch_was_written_for(name: str) -> None:
    assert not (fault := tool.fault(name, PATCHES[name])), fault


def test_only_transformer_engine_is_left_to_the_gpu_tests() -> None:
    others = {PATCHES[name].distribution for name in PATCHES.keys() - INSTALLED}
    assert others <= {"transformer-engine"}
    assert len(INSTALLED) > 40


def test_another_code_is_a_fault_that_names_the_patch_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made_up_library.py"
    file.write_text("class Layer:\n    def forward(self):\n        return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    patch = tool.Patch("made_up_library:Layer", ("forward",), "made-up", "1.0", "slow", "")
    patch = tool.Patch(**{**vars(patch), "digest": tool.digest(patch)})
    assert tool.fault("FORWARD", patch) == ""
    file.write_text("class Layer:\n    def forward(self):\n        return 2\n")
    tool._parsed.cache_clear()
    changed = tool.fault("FORWARD", patch)
    assert changed.startswith("FORWARD: the code of made-up")
    assert "record the version and the digest" in changed
    file.write_text("class Layer:\n    def call(self):\n        return 2\n")
    tool._parsed.cache_clear()
    assert "has no Layer.forward" in tool.fault("FORWARD", patch)


def test_the_page_is_what_the_records_say() -> None:
    assert tool.PAGE.read_text() == tool.page(), "run `make patches`"


def test_library_code_is_replaced_through_records_only() -> None:
    """No module assigns to an attribute of something that it imported from a library."""
    found = []
    for file in (ROOT / "pipeline").rglob("*.py"):
        tree = ast.parse(file.read_text())
        imported = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if (getattr(node, "module", None) or alias.name).partition(".")[0]
            not in {"pipeline", *sys.stdlib_module_names}
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                targets = [ast.Attribute(node.args[0], "")]
            found += [
                f"{file.relative_to(ROOT)}:{node.lineno}"
                for target in targets
                if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id in imported
            ]
    assert not found


def test_every_record_is_applied() -> None:
    text = "\n".join(f.read_text() for f in (ROOT / "pipeline").rglob("*.py"))
    unused = [name for name in PATCHES if text.count(name) < 2]  # the record, and its use
    assert not unused
