"""Slices, worst rows, near intents, calibration, and the page that shows them."""

import math
import re
from pathlib import Path

import pytest

from pipeline.evaluation import findings, page, report
from pipeline.evaluation.confidence import Estimate
from pipeline.evaluation.findings import Confusion, calibration, confusions, worst
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.slices import Asked, by_slice, names_of, places_of
from tests.unit.evaluation.cases import answers, measured, settings

FEE = "The fee for a wire is five dollars."
LOST = "The fee for a card is six dollars."
OPEN = "We open at nine in the morning."


def test_slices_are_tags_files_and_languages() -> None:
    asked = [
        Asked([], "a/x.jsonl:1", ("cards", "new"), "en"),
        Asked([], "a/x.jsonl:2", ("loans",), None),
        Asked([], "y.jsonl:7", (), "en"),
    ]
    found = by_slice(asked)
    assert list(found) == [("tag", "cards"), ("tag", "loans"), ("tag", "new"),
                           ("source", "a/x.jsonl"), ("source", "y.jsonl"),
                           ("language", "en")]  # fmt: skip
    assert found["source", "a/x.jsonl"] == [0, 1]
    assert places_of(("language", "en"), asked) == [0, 2]
    assert places_of(None, asked) == [0, 1, 2]
    assert names_of("tag", asked) == ["cards", "loans", "new"]
    assert by_slice([Asked([], "x:1")]) == {}, "a slice of all questions says nothing"


def test_the_worst_rows_are_those_of_the_lowest_value_then_the_least_likely(tmp_path: Path) -> None:
    given = answers(["a", "x", "y", "a b"], ["a"] * 4, losses=[1.0, 2.0, 3.0, 1.0])
    found = measured(settings(["token_f1"]), given, tmp_path)
    assert worst(METRICS["token_f1"], found, 9) == [2, 1, 3]
    assert worst(METRICS["token_f1"], found, 1) == [2]
    assert worst(METRICS["length"], found, 9) == []
    wrong = measured(settings(["token_f1"]), answers(["x", "y"], ["a", "b"]), tmp_path)
    assert worst(METRICS["token_f1"], wrong, 9) == [0, 1], "where none is right, all are shown"


def test_near_intents_that_are_mixed_up_are_counted(tmp_path: Path) -> None:
    texts = [LOST, "the fee for a card is 6 dollars", FEE, OPEN, "Something else.", ""]
    expected = [FEE, FEE, FEE, OPEN, OPEN, LOST]
    found = measured(settings(["token_f1"]), answers(texts, expected), tmp_path)
    assert confusions(found) == [Confusion(FEE, LOST, 2, "question 0")]
    tags = [["wires"], ["wires"], ["wires"], ["hours"], ["hours"], ["cards"]]
    tagged = measured(settings(["token_f1"]), answers(texts, expected, tags), tmp_path)
    assert confusions(tagged) == [Confusion("wires", "cards", 2, "question 0")]
    one = measured(settings(["token_f1"]), answers(["a"], ["b"]), tmp_path)
    assert confusions(one) == []


def test_calibration_compares_confidence_with_the_metric(tmp_path: Path) -> None:
    given = answers(["a"] * 5, ["a", "a", "a", "b", "b"])
    found = measured(settings(["exact_match"]), given, tmp_path)
    result = calibration(METRICS["exact_match"], found, [0.95, 0.95, 0.95, 0.95, math.nan])
    (row,) = result["bins"]
    assert (row["questions"], row["value"]) == (4, 0.75)
    assert result["error"] == pytest.approx(0.2)
    assert calibration(METRICS["exact_match"], found, []) == {}


def test_the_page_stands_alone_and_escapes_what_it_shows() -> None:
    metrics = {"exact_match": METRICS["exact_match"], "token_f1": METRICS["token_f1"]}
    figures = {n: Estimate(0.8, 0.7, 0.9, 10) for n in metrics}
    part = {"kind": "tag", "name": "<b>", "questions": 4, "models": {}}
    made = report.build(
        metrics, "exact_match", {"base": figures, "tuned": figures, "fp8": figures}, {},
        [Verdict("learned", False, "too <little>"), Verdict("format", True, "enough")],
        ["int8_sq loses"], questions=10, method="adapter", beyond_limit=0,
        cut={"base": 0, "tuned": 0, "fp8": 0}, failures={"polite": "it raised"}, slices=[part],
        calibration={"error": 0.1, "bins": [
            {"low": 0.9, "high": 1, "questions": 3, "confidence": 0.95, "value": 0.8}]},
        judge={"asked": 8, "unread": 1, "pairs": 4, "agreement": 0.75, "model": "j",
               "tokens": 99, "cost": "0.01"},
    )  # fmt: skip
    record = {"question": "<script>alert(1)</script>", "expected": "e", "value": 0.0,
              "answers": {"base": "", "tuned": "t"}, "source": "f:1"}  # fmt: skip
    text = page.page(
        made, title="Evaluation of m", worst=[record],
        confused=[findings.Confusion("wires", "cards", 2, "How much?")],
    )  # fmt: skip
    assert "<script" not in text
    assert "too &lt;little&gt;" in text
    assert not re.search(r"""(src|href)=|url\(|https?:""", text), "it needs nothing else"
    for said in ("Gate refused", "Worst answers", "wires", "Calibration", "fp8, simulated",
                 "prefers-color-scheme:dark", "Compared only: int8_sq loses", "polite was not",
                 "the same verdict in both orders for 75.0% of 4 pairs"):  # fmt: skip
        assert said in text, said
    assert text.count("<section>") == text.count("</section>") == 7


def test_a_page_of_a_metric_that_is_no_share() -> None:
    metric = METRICS["answer_loss"]
    figures = {"answer_loss": Estimate(2.5, 2.0, 3.0, 4)}
    made = report.build(
        {"answer_loss": metric}, "answer_loss", {"base": figures, "tuned": figures}, {}, [], [],
        questions=4, method="full", beyond_limit=0, cut={"base": 0, "tuned": 0},
    )  # fmt: skip
    text = page.page(made, title="m", worst=[], confused=[])
    assert "width:83.33%" in text
    assert "Gate passed" in text
