"""The records of replaced code in Transformer Engine, which only machines with a GPU have."""

import pytest

from tools import patches as tool

PATCHES = {n: p for n, p in tool.patches().items() if p.distribution == "transformer-engine"}


@pytest.mark.parametrize("name", PATCHES)
def test_the_installed_code_is_what_the_patch_was_written_for(name: str) -> None:
    assert not (fault := tool.fault(name, PATCHES[name])), fault
