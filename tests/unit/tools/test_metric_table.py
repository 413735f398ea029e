"""The generated pages of metrics and conditions are those of the code."""

from pipeline.config.evaluate import Condition
from pipeline.evaluation.metrics import METRICS
from tools.metric_table import GATE, PAGE, gate_page, page


def test_the_committed_pages_are_current() -> None:
    assert page() == PAGE.read_text(), "run `make docs`"
    assert gate_page(GATE.read_text()) == GATE.read_text(), "run `make docs`"


def test_every_metric_and_every_field_has_a_row() -> None:
    assert all(f"| `{name}` |" in page() for name in METRICS)
    written = gate_page("<!-- condition: written by `make docs` -->\nold\n<!-- /condition -->")
    assert all(f"| `{name}` |" in written for name in Condition.model_fields)
    assert "old" not in written
