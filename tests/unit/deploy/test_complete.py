"""Packages that a vendor's image lacks come from the lock; others stay as they are."""

import ast
import sys
from collections.abc import Mapping
from importlib import metadata

import pytest

from pipeline.core.extras import EXTRAS
from pipeline.core.paths import ROOT
from tools.complete import CHAIN, LOCK, SERVER, complete, needs, normal, read_lock

# Brought by the images themselves, in the versions that their makers chose.
OF_THE_IMAGES = set(
    "torch triton transformers nemo megatron lightning modelopt pulp vllm tensorrt_llm onnxruntime "
    "onnxruntime_genai transformer_engine transformer_engine_torch pynvml onnx onnx_ir nemo_run "
    "fiddle invoke triton_python_backend_utils".split()
)


@pytest.fixture(scope="module")
def distributions() -> Mapping[str, list[str]]:
    """Installed packages by what they are imported as."""
    return metadata.packages_distributions()


class Image:
    """An image's packages: what each needs. Installing one brings what the lock says of it."""

    def __init__(self, has: dict[str, list[str]], lock: dict[str, list[str]]) -> None:
        self.has, self._lock = dict(has), lock
        self.installed: list[str] = []

    def complete(self, *wanted: str) -> list[str]:
        entries = {name: f"{name}==1" for name in self._lock}
        return complete(wanted, entries, self.has.get, self._install)

    def _install(self, entries: list[str]) -> None:
        names = [entry.removesuffix("==1") for entry in entries]
        self.installed += names
        self.has |= {name: self._lock[name] for name in names}


def test_what_is_lacking_is_added_with_what_it_needs_in_turn() -> None:
    image = Image({"torch": ["nothing-of-ours"]}, {"app": ["torch", "a"], "a": ["b"], "b": []})
    assert image.complete("app", "torch") == ["app", "a", "b"]
    assert image.complete("app", "torch") == []


def test_a_package_that_the_lock_lacks_is_reported() -> None:
    with pytest.raises(SystemExit, match=r"requirements\.lock has no b: add it"):
        Image({}, {"a": ["b"]}).complete("a")


def test_a_package_that_does_not_appear_ends_it() -> None:
    with pytest.raises(SystemExit, match="a is missing after its installation"):
        complete(["a"], {"a": "a==1"}, lambda name: None, lambda entries: None)


def test_a_package_with_a_version_for_each_python_keeps_both() -> None:
    older = "a==1 ; python_version < '3.12' \\\n    --hash=sha256:0"
    newer = "a==2 ; python_version >= '3.12' \\\n    --hash=sha256:1"
    lock = read_lock(f"{older}\n{newer}\nB.c==3 \\\n    --hash=sha256:2\n")
    assert lock == {"a": f"{older}\n{newer}", "b-c": "B.c==3 \\\n    --hash=sha256:2"}


def test_needs_are_those_of_this_python_without_extras() -> None:
    assert needs("no-such-package") is None
    uvicorn = needs("uvicorn")
    assert uvicorn is not None
    assert "h11" in uvicorn
    assert "watchfiles" not in uvicorn, "an extra"


def test_every_name_is_in_the_lock_with_hashes() -> None:
    lock = read_lock(LOCK.read_text())
    assert [name for name in CHAIN if name not in lock] == []
    assert all("--hash=sha256:" in lock[name] for name in CHAIN)


# What extras install under another name than that of its module; they need not be installed here.
OF_EXTRAS = {"docx": "python-docx"}
NAMESPACES = {"google.protobuf": "protobuf"}  # whose first part several distributions share


@pytest.mark.parametrize(("part", "wanted"), [("pipeline/serving", SERVER), ("pipeline", CHAIN)])
def test_whatever_our_code_imports_is_wanted_or_the_images_own(
    distributions: Mapping[str, list[str]], part: str, wanted: list[str]
) -> None:
    found: set[str] = set()
    for name in imported(part) - OF_THE_IMAGES:
        found |= {
            normal(d) for d in distributions.get(name, [(OF_EXTRAS | NAMESPACES).get(name, name)])
        }
    covered = {normal(name) for name in wanted}
    covered |= {normal(n) for name in wanted for n in needs(name) or []}
    of_extras = {normal(name) for extra in EXTRAS.values() for name in extra.packages}
    assert found - covered - of_extras == set()


def imported(folder: str) -> set[str]:
    """Top names of what the code below a folder imports, the standard library and ours aside."""
    names: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                shared = [name for name in NAMESPACES if f"{node.module}.".startswith(f"{name}.")]
                names.add(shared[0] if shared else node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"pipeline", "tools"}
