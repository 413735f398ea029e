"""Every metric of the table on a right and a wrong answer; metrics of the user's own."""

import json
import math
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, DataError
from pipeline.evaluation import embedding, overlap, structure
from pipeline.evaluation.metrics import METRICS
from pipeline.models.chat.tool_calls import said
from tests.unit.evaluation.cases import answers, measured, settings, values

NAN = math.nan
CALL = {"name": "pay", "arguments": {"to": "Ann", "sum": 5}}
# Metric → answer, expected answer, value.
SCORES = {
    "exact_match": [("Call us.\n", "call  us.", 1), ("Call us", "Call us.", 0)],
    "normalized_match": [("The fee is 5", "fee is 5!", 1), ("a fee of 6", "fee of 5", 0)],
    "numeric_match": [
        ("So 3 + 4 = 7.", "7", 1), ("It is 1,250.50 dollars", "$1250.5", 1), ("8", "7", 0),
        ("none", "7", 0), ("7", "seven", NAN), ("-3", "3", 0),
    ],
    "token_f1": [("a b", "a c", 0.5), ("今日 は", "今日", 0.8)],
    "rouge_l": [("a x b y c", "a b c", 0.75), ("c b a", "a b c", 1 / 3), ("", "", 1), ("", "a", 0)],
    "chrf": [("the fee", "the fee", 1), ("xyz", "the fee", 0)],
    "bleu": [("the fee is five", "the fee is five", 1), ("", "the fee", 0)],
    "json_valid": [
        ('```json\n{"a": 1}\n```', '{"a": 2}', 1), ("{a: 1}", '{"a": 2}', 0), ("{}", "text", NAN),
        ("7", "[1]", 0), ("[" * 9999, "[1]", 0),
    ],
    "json_schema": [('{"fee": 5}', "", 1), ('{"fee": "five"}', "", 0), ("five", "", 0)],
    "tool_call_match": [
        (f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>", json.dumps(CALL), 1),
        ('[{"name": "pay", "parameters": {"sum": 5, "to": "Ann"}}]', json.dumps(CALL), 1),
        (json.dumps({**CALL, "arguments": {"to": "Bob", "sum": 5}}), json.dumps(CALL), 0),
        ("I pay Ann", json.dumps(CALL), 0), (json.dumps(CALL), "no call", NAN),
    ],
    "pattern": [("yes", "", 1), (" no\n", "", 1), ("maybe yes", "", 0)],
    "refusal_rate": [("I'm sorry, I cannot.", "", 1), ("As an AI model", "", 1), ("Sure", "", 0)],
    "length": [("one two  three", "", 3), ("", "", 0)],
}  # fmt: skip
LEFT = {"embedding_similarity", "judge_score", "judge_wins", "answer_loss", "perplexity",
        "general_perplexity"}  # fmt: skip


def test_every_metric_is_tried() -> None:
    """The others need a model: test_judge.py, test_generation.py and integration tests."""
    assert set(SCORES) | LEFT == set(METRICS)


@pytest.mark.parametrize("name", SCORES)
def test_a_metric_of_the_table(name: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"fee": {"type": "number"}}}))
    needs = {"json_schema": {"json_schema": schema}, "pattern": {"pattern": "yes|no"}}
    chosen = settings([name], **needs.get(name, {}))
    texts, expected, wanted = zip(*SCORES[name], strict=True)
    found = values(measured(chosen, answers(texts, expected), tmp_path))[name]
    assert found == pytest.approx(list(wanted), nan_ok=True)


def test_an_answer_that_was_cut_is_no_match(tmp_path: Path) -> None:
    chosen = settings(["exact_match", "token_f1", "json_valid"])
    given = answers(['{"a": 1}', "b"], ['{"a": 1}', "b"], cut=[True, False])
    found = values(measured(chosen, given, tmp_path))
    assert found["exact_match"] == [0, 1]
    assert found["token_f1"] == [1, 1]
    assert found["json_valid"][0] == 0


def test_calls_are_compared_as_a_turn_says_them(tmp_path: Path) -> None:
    """`said` is the form of an expected turn with calls, and of a served one."""
    call = {"type": "function", "function": {"name": "pay", "arguments": {"sum": 5, "to": "Ann"}}}
    turn = said({"role": "assistant", "content": "I pay.", "tool_calls": [call, call]})
    assert structure.calls_in(turn) == [("pay", {"sum": 5, "to": "Ann"})] * 2
    assert structure.tool_calls(turn, turn) == 1
    assert structure.tool_calls(turn.rpartition("\n")[0], turn) == 0


def test_losses_are_weighted_by_their_tokens(tmp_path: Path) -> None:
    from pipeline.evaluation.measure import Bootstrap

    chosen = settings(["answer_loss", "perplexity", "general_perplexity"], general_text="x.txt")
    given = answers(["a", "b"], ["a", "b"], losses=[2.0, 4.0], tokens=[2.0, 1.0],
                    general_losses=[3.0], general_tokens=[1.0])  # fmt: skip
    found = measured(chosen, given, tmp_path)
    draw = Bootstrap(100, 1)
    figures = {name: draw.estimate(METRICS[name], found) for name in chosen.metrics}
    shown = {name: figure.value for name, figure in figures.items() if figure}
    assert shown == pytest.approx(
        {"answer_loss": 2.0, "perplexity": math.e**2, "general_perplexity": math.e**3}
    )


@pytest.mark.parametrize("content", ["not json", '{"type": 7}', "[]"])
def test_a_file_that_is_no_schema_costs_a_line_and_keeps_the_others(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(content)
    chosen = settings(["json_schema", "exact_match"], json_schema=schema)
    found = measured(chosen, answers(["{}"], ["{}"]), tmp_path)
    assert list(found.samples) == ["exact_match"]
    assert "is no JSON schema" in found.failures["json_schema"]


def test_a_schema_fetches_nothing(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"$ref": "http://127.0.0.1:9/schema.json"}))
    check = structure.json_schema_check(schema)
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        check("{}")


OWN = '''
def polite(answer):
    """share of the answers that thank"""
    return "thank" in answer.lower()
polite.format = ".0%"

def other(answer, expected, messages, tags, source, language):
    assert messages[-1]["role"] == "user"
    return {"en": 1, "de": None}[language]

def broken(answer):
    return 1 / 0

def texts(answer):
    return answer

def unknown(answer, colour):
    return 1

def leaves(answer):
    raise SystemExit("usage: measures.py FILE")
'''


def test_metrics_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measures.py"
    file.write_text(OWN)
    names = ["polite", "other", "broken", "texts", "unknown", "missing", "leaves"]
    chosen = settings(["token_f1", *(f"{file}:{name}" for name in names)])
    given = answers(["Thanks", "No"], ["Thanks", "No"], tags=[["a"], []])
    found = measured(chosen, given, tmp_path)
    assert values(found)["polite"] == [1, 0]
    assert values(found)["other"] == pytest.approx([1, NAN], nan_ok=True)
    assert set(found.samples) == {"token_f1", "polite", "other"}
    said = found.failures
    assert said["broken"] == (
        f"{file}:broken raised ZeroDivisionError: division by zero at test.jsonl:1"
    )
    assert "returned a str at test.jsonl:1, which is no number" in said["texts"]
    assert "has the parameter colour: choose from answer, expected" in said["unknown"]
    assert "the file has no function missing" in said["missing"]
    assert "raised SystemExit: usage: measures.py FILE at test.jsonl:1" in said["leaves"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "is not measured" in line]
    assert len(lines) == 5


def test_a_file_of_ones_own_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "c.py").write_text("raise SystemExit(2)\n")
    chosen = settings(
        [f"{tmp_path}/{name}" for name in ("a.py:f", "b.py:g", "c.py:h")] + ["length"]
    )
    found = measured(chosen, answers(["a"], ["a"]), tmp_path)
    assert "the file cannot be loaded (ModuleNotFoundError" in found.failures["f"]
    assert "there is no file" in found.failures["g"]
    assert "the file cannot be loaded (SystemExit: 2)" in found.failures["h"]
    assert set(found.samples) == {"length"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["exact_mach"], "no metric 'exact_mach': did you mean exact_match"),
        (["length", "length"], "length is there twice"),
        (["a.py:length"], "has the name of a metric of the table"),
        (["json_schema"], "json_schema needs evaluate.json_schema: give it"),
        (["pattern"], "pattern needs evaluate.pattern"),
        (["general_perplexity"], "needs evaluate.general_text"),
        (["embedding_similarity"], "needs evaluate.embedder"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_before_anything_runs(
    names: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        settings(names)
    assert "\n" not in str(caught.value)


def test_expressions_are_checked_when_they_are_given() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.pattern='\(': it is no regular expression"):
        settings(["pattern"], pattern="(")


def test_words_of_other_scripts() -> None:
    assert overlap.words("Grüße, 今日は2回!") == ["grüsse", "今", "日", "は", "2", "回"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is no folder of a sentence-transformers model"),
        (
            {"modules.json": '[{"type": "other.Module"}]', "config.json": "{}"},
            "asks for the module",
        ),
        (
            {"modules.json": "[]", "config.json": '{"auto_map": {}}', "model.safetensors": ""},
            "brings code of its own",
        ),
        ({"modules.json": "[]", "config.json": "{}", "pytorch_model.bin": ""}, "no .safetensors"),
    ],
)
def test_folders_that_are_no_safe_embedder(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        embedding.check(tmp_path)
