"""The gate: what the tuned model, the exported format and the served engine must reach.

`stage=evaluate` asks about the tuned model and the simulated formats before anything is exported;
`stage=benchmark` asks about the engine as clients reach it. Knows only scores, by model.
"""

from collections.abc import Mapping, Set

from pipeline.config.evaluate import GateConfig
from pipeline.evaluation.metrics import gate_metric
from pipeline.optimization.formats import FORMATS

BASE, TUNED, SERVED = "base", "tuned", "served"


def refusals(gate: GateConfig, method: str, scores: Mapping[str, float], shipped: str) -> list[str]:
    """Why the gate refuses, in words; empty if it does not.

    method: what was trained, "adapter" or "full". scores: values of the gate's metric by model:
    base, tuned and formats. shipped: the format that is exported.
    """
    metric, least = gate_metric(), getattr(gate.min_exact_match, method)
    problems = []
    if metric.gain(scores[TUNED], least) < 0:
        problems.append(
            f"the {metric.title} of the tuned model is {metric.text(scores[TUNED])}, and "
            f"evaluate.gate.min_{metric.name}.{method} requires {metric.text(least)}: train longer "
            "(finetune.max_steps) or look at predictions.jsonl"
        )
    mend = "choose another format or raise quantize.calibration.rows"
    return problems + [f"{drop}: {mend}" for drop in drops(gate, scores, {shipped})]


def drops(gate: GateConfig, scores: Mapping[str, float], formats: Set[str]) -> list[str]:
    """Which of the formats lose more than the gate allows, in words."""
    metric, found = gate_metric(), []
    for name in FORMATS:
        if name not in formats & scores.keys():
            continue
        loss, allowed = metric.gain(scores[TUNED], scores[name]), gate.allowed_drop(name)
        # A loss of exactly what is allowed is allowed, however the difference is rounded.
        if loss > allowed + 1e-9:
            found.append(
                f"{name}: its {metric.title} is {metric.text(scores[name])}, "
                f"{metric.text(loss)} worse than the tuned model's, and "
                f"evaluate.gate.max_drop.{name} allows {metric.text(allowed)}"
            )
    return found


def served_refusals(
    gate: GateConfig, method: str, served: float, tuned: float, engine: str
) -> list[str]:
    """Why the gate refuses the served engine, in words; empty if it does not.

    method: as for `refusals`. served, tuned: values of the gate's metric. engine: its runtime and
        precision, for the message.
    """
    metric, least = gate_metric(), getattr(gate.min_exact_match, method)
    shown, problems = f"the {metric.title} of the served engine ({engine})", []
    if metric.gain(served, least) < 0:
        problems.append(
            f"{shown} is {metric.text(served)}, and evaluate.gate.min_{metric.name}.{method} "
            f"requires {metric.text(least)}: look at answers.jsonl"
        )
    loss = metric.gain(tuned, served)
    if loss > gate.max_served_drop + 1e-9:
        problems.append(
            f"{shown} is {metric.text(served)}, {metric.text(loss)} worse than the tuned model's, "
            f"and evaluate.gate.max_served_drop allows {metric.text(gate.max_served_drop)}: build "
            "with more precision (engine.precision, quantize.format), or set engine.sampling"
        )
    return problems
