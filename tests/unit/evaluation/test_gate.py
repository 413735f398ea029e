"""The gate's conditions: what each kind decides, and which are refused when they are given."""

from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.config.evaluate import FORMAT, SERVED, TUNED
from pipeline.core.errors import ConfigError
from pipeline.evaluation.confidence import Estimate, Sample
from pipeline.evaluation.gate import Verdict, check, check_beyond
from pipeline.evaluation.measure import Bootstrap, Measured
from pipeline.evaluation.metrics import METRICS
from pipeline.orchestration.compose import compose
from tests.unit.evaluation.cases import answers, settings

DRAW = Bootstrap(400, 1)
COUNT = 100


def model(right: int, loss: float = 1.0, failures: dict[str, str] | None = None) -> Measured:
    """A model that answers the first of 100 questions right; each second one is tagged "card"."""
    tags = [["card"] if i % 2 else ["loan"] for i in range(COUNT)]
    values = [float(i < right) for i in range(COUNT)]
    samples = {
        "exact_match": Sample(values),
        "token_f1": Sample(values),
        "length": Sample([10.0] * COUNT),
        "answer_loss": Sample([loss] * COUNT, [1.0] * COUNT),
    }
    samples = {name: s for name, s in samples.items() if name not in (failures or {})}
    return Measured(answers(["x"] * COUNT, ["x"] * COUNT, tags), samples, failures or {})


def decide(condition: dict[str, Any], models: dict[str, Measured], **more: Any) -> Verdict:
    chosen = settings(["token_f1"], gate={"mine": condition}, **more.pop("changes", {}))
    decided = (TUNED, FORMAT, SERVED)
    (verdict,) = check(chosen, METRICS, models, "fp8", DRAW, decided=decided, **more)
    return verdict


MODELS = {"base": model(30, 2.0), "tuned": model(80), "fp8": model(78), "served": model(75)}


@pytest.mark.parametrize(
    ("condition", "passed"),
    [
        ({"metric": "exact_match", "min": 0.8}, True),
        ({"metric": "exact_match", "min": 0.81}, False),
        ({"metric": "exact_match", "min": 0.75, "by": "interval"}, False),
        ({"metric": "exact_match", "min": 0.65, "by": "interval"}, True),
        ({"metric": "length", "min": 5, "max": 20}, True),
        ({"metric": "length", "max": 9}, False),
        ({"metric": "exact_match", "against": "base"}, True),
        ({"metric": "exact_match", "against": "base", "margin": -0.6}, False),
        ({"metric": "answer_loss", "against": "base"}, True),
        ({"metric": "answer_loss", "against": "base", "margin": -1.5}, False),
        ({"model": "format", "against": "tuned"}, True),  # 2 points, which fp8's record allows
        ({"model": "format", "against": "tuned", "margin": 0.01}, False),
        ({"model": "format", "against": "tuned", "margin": 0.02, "by": "interval"}, False),
        ({"model": "format", "against": "tuned", "margin": 0, "by": "test"}, True),
        ({"model": "served", "against": "tuned", "margin": 0.03}, False),
        ({"model": "served", "against": "tuned", "by": "test"}, False),
        ({"model": "served", "against": "tuned", "margin": 0.05}, True),
        ({"metric": "exact_match", "tag": "card", "min": 0.8}, True),
        ({"metric": "exact_match", "tag": "card", "min": 0.82}, False),
        ({"metric": "exact_match", "source": "test.jsonl", "min": 0.8}, True),
        ({"metric": "exact_match", "language": "de", "min": 0.8}, True),
    ],
)
def test_what_a_condition_decides(condition: dict[str, Any], passed: bool) -> None:
    verdict = decide(condition, MODELS)
    assert verdict.passed is passed, verdict.text
    assert verdict.line.startswith("evaluate.gate.mine: the ")


def test_a_refusal_says_the_value_what_is_required_and_what_to_do() -> None:
    said = decide({"metric": "exact_match", "min": 0.9}, MODELS).line
    assert said == (
        "evaluate.gate.mine: the exact match of the tuned model is 80.0% on 100 questions, and at "
        "least 90.0% is required: train longer (finetune.max_steps), or look at predictions.jsonl"
    )
    condition = {"model": "served", "against": "tuned", "margin": 0.03}
    said = decide(condition, MODELS, named="hf fp32, temperature 0").line
    assert "the token F1 of the served engine (hf fp32, temperature 0) is 75.0%, 5.0%" in said
    assert "below that of the tuned model on 100 questions, and its margin is 3.0%" in said
    said = decide({"metric": "exact_match", "tag": "card", "min": 0.9}, MODELS).text
    assert "of the tuned model on tag card is 80.0% on 50 questions" in said


def test_what_was_forgotten_is_counted_in_passages() -> None:
    def forgetful(loss: float) -> Measured:
        found = model(80)
        found.samples["general_perplexity"] = Sample([loss] * 9, [1.0] * 9)
        return found

    condition = {"metric": "general_perplexity", "against": "base", "margin": 5}
    models = {"base": forgetful(2.0), "tuned": forgetful(3.0)}
    said = decide(condition, models, changes={"general_text": "x.txt"})
    assert not said.passed
    assert "above that of the base model on 9 passages, and its margin is 5" in said.text


def test_a_loss_of_just_what_is_allowed_passes() -> None:
    models = {"tuned": model(90), "served": model(87)}
    assert decide({"model": "served", "against": "tuned", "margin": 0.03}, models).passed


def test_a_slice_without_questions_is_refused_with_those_that_there_are() -> None:
    said = decide({"metric": "exact_match", "tag": "cards", "min": 0.1}, MODELS)
    assert not said.passed
    assert "no test question has the tag cards: choose from card, loan" in said.text


def test_a_metric_that_failed_is_refused_with_its_reason() -> None:
    models = {"tuned": model(80, failures={"token_f1": "it raised"})}
    said = decide({"metric": "token_f1", "min": 0.1}, models)
    assert not said.passed
    assert said.text == "the token F1 of the tuned model was not measured: it raised"


def test_formats_that_are_only_compared_are_judged_alike() -> None:
    chosen = settings(["token_f1"], gate={"format": {"model": "format", "against": "tuned"}})
    models = {**MODELS, "int8_sq": model(70), "int4_awq": model(76)}
    (beyond,) = check_beyond(chosen, METRICS, models, "fp8", DRAW)
    assert beyond.startswith("the token F1 of int8_sq, simulated is 70.0%")


def test_benchmarks_are_conditions_on_the_served_engine() -> None:
    condition = {"metric": "gsm8k.exact_match", "model": "served", "min": 0.5}
    results = {"gsm8k.exact_match": Estimate(0.4, 0.3, 0.5, 200)}
    changes = {"benchmarks": ["gsm8k"]}
    said = decide(condition, MODELS, benchmarks=results, changes=changes)
    assert not said.passed
    assert "gsm8k.exact_match of the served engine is 0.400 on 200 questions" in said.text
    condition = {"metric": "gsm8k", "model": "served", "min": 0.4}
    assert decide(condition, MODELS, benchmarks=results, changes=changes).passed
    said = decide(condition, MODELS, changes=changes)
    assert "there is no result gsm8k: choose from no benchmark gave a result" in said.text


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"min": 0.5, "against": "base"}, "give min and max, or against with margin, not both"),
        ({"metric": "exact_match"}, "give min or max, or against"),
        ({"min": 0.5, "margin": 0.1}, "margin needs against="),
        ({"min": 0.5, "by": "test"}, "by=test compares: give against"),
        ({"against": "tuned"}, "the tuned model equals itself"),
        ({"against": "champion"}, "the champion is a served engine: give model=served"),
        ({"min": 0.5, "tag": "a", "language": "de"}, "give one of tag, language"),
        ({"min": "much"}, r"evaluate\.gate\.mine\.min='much'"),
        ({"metric": "f1", "min": 0.5}, "there is no metric f1: choose from token_f1"),
        ({"metric": "perplexity", "model": "served", "max": 9}, "needs the model's probabilities"),
        ({"metric": "general_perplexity", "tag": "a", "max": 9}, "needs evaluate.general_text"),
        ({"metrc": "token_f1", "min": 0.5}, r"evaluate\.gate\.mine\.metrc is not a setting"),
    ],
)
def test_conditions_that_decide_nothing_are_refused(condition: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        settings(["token_f1"], gate={"mine": condition})
    assert "evaluate" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("evaluate.gate.min_exact_match.adapter=0.6", "evaluate.gate.learned={metric:exact_match"),
        ("evaluate.gate.max_drop.fp8=0.03", "evaluate.gate.format.margin="),
        ("evaluate.gate.max_served_drop=0.05", "evaluate.gate.served.margin="),
        ("register.margin=0.01", "evaluate.gate.champion.margin"),
    ],
)
def test_settings_of_earlier_versions_are_refused_with_the_new_name(
    given: str, instead: str
) -> None:
    from pipeline.orchestration.compose import from_command_line

    with pytest.raises(ConfigError) as caught:
        from_command_line(["stage=all", given])
    assert instead in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_fit_a_stranger_and_the_demo_has_its_own() -> None:
    plain = default_config({"model": "local", "model.name": "m", "model.path": "data/base_model"})
    assert set(plain.evaluate.gate) == {"base", "format", "served", "champion"}
    assert plain.evaluate.main == "token_f1"
    # An untrained model, which equals the base model, passes; one that is shown to be worse fails.
    same = {"base": model(0, 1.0), "tuned": model(0, 1.0), "fp8": model(0, 1.0)}
    worse = {**same, "tuned": model(0, 1.2), "fp8": model(0, 1.2)}
    metrics = dict(METRICS)
    for models, passed in ((same, True), (worse, False)):
        found = check(plain.evaluate, metrics, models, "fp8", DRAW, decided=(TUNED, FORMAT))
        assert [v.passed for v in found] == [passed, True], [v.text for v in found]
    demo = default_config()
    assert demo.evaluate.main == "exact_match"
    assert demo.evaluate.gate["learned"].min == 0.8  # type: ignore[union-attr]
    full = default_config({"finetune": "sft"})
    assert full.evaluate.gate["learned"].min == 0.9  # type: ignore[union-attr]


def test_conditions_on_the_command_line() -> None:
    given = ["evaluate.gate.cards={metric:exact_match,tag:cards,min:0.7}",
             "evaluate.gate.base=null", "evaluate.gate.served.margin=0.1"]  # fmt: skip
    gate = compose(given)["evaluate"]["gate"]
    assert gate["cards"] == {"metric": "exact_match", "tag": "cards", "min": 0.7}
    assert gate["base"] is None
    assert gate["served"]["margin"] == 0.1
