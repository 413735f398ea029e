"""Every model family through the main hops on a tiny random model, and the page of all hops.

`python -m tools.family_table` runs all cells. Here each family takes the hops without which the
others mean nothing, and the record must be of today's families.
"""

import json
from pathlib import Path

import pytest

from pipeline.models.families import FAMILIES, family_of
from pipeline.models.families.unsupported import UNSUPPORTED
from tests.integration.family_case import MODELS
from tools.family_table import importers, page
from tools.family_table.cells import HOPS, main_path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_main_way(family: str, tmp_path: Path) -> None:
    from pipeline.optimization import ptq

    ptq.modelopt()  # before transformers, as the stages do
    found = main_path(family, MODELS[family](tmp_path / "model"), tmp_path)
    recorded = page.read_record()[family]["cells"]
    for hop, cell in found.items():
        assert bool(cell.refusal) == ("refusal" in recorded[hop]), (hop, cell.refusal)


def test_the_record_is_of_todays_families() -> None:
    recorded = page.read_record()
    assert list(recorded) == list(FAMILIES), "run `python -m tools.family_table` for the new ones"
    stale = [name for name in FAMILIES if recorded[name]["digest"] != page.digest_of(name)]
    assert not stale, f"run `python -m tools.family_table {' '.join(stale)}`"
    for entry in recorded.values():
        assert set(entry["cells"]) <= set(HOPS)
        for cell in entry["cells"].values():
            assert "\n" not in json.dumps(cell.get("refusal", "")).strip('"')


def test_the_page_shows_what_is_recorded() -> None:
    shown = page.PAGE.read_text(encoding="utf-8")
    assert shown == page.render(page.read_record()), "run `python -m tools.family_table --page`"


def test_refused_architectures_name_a_supported_one() -> None:
    for record in UNSUPPORTED:
        assert family_of([record.nearest]) is not None, record
        assert family_of(record.architectures) is None, record


def test_every_importer_of_nemo_is_taken_or_refused_with_a_reason() -> None:
    assert importers.installed() == set(importers.IMPORTERS)
    for names in importers.IMPORTERS.values():
        for name in names:
            title, reason = importers.verdict(name)
            assert bool(title) != bool(reason)
            assert title or "limit" in reason, name
