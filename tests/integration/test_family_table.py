"""Every model family through the main hops on a tiny random model.

`python -m tools.family_table` runs all hops. Here each family takes those without which the others
mean nothing: import, LoRA, merge, FP8, unified HF, an engine, and an answer from the server.
"""

from pathlib import Path

import pytest

from pipeline.models.families import FAMILIES, family_of
from pipeline.models.families.unsupported import UNSUPPORTED
from tests.integration.family_case import MODELS
from tools.family_table.cells import main_path
from tools.family_table.page import MAIN


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_main_way(family: str, tmp_path: Path) -> None:
    from pipeline.optimization import ptq

    ptq.modelopt()  # before transformers, as the stages do
    cells = main_path(family, MODELS[family](tmp_path / "model"), tmp_path)
    assert {hop: cells[hop].refusal for hop in MAIN} == dict.fromkeys(MAIN, "")


def test_refused_architectures_name_a_supported_one() -> None:
    for record in UNSUPPORTED:
        assert family_of([record.nearest]) is not None, record
        assert family_of(record.architectures) is None, record
