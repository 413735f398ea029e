"""Reports → a version in the MLflow registry, with a model card; champion if the gate passed.

The request is complete and content-addressed, so that the tracker can execute it (a version with
signature, figures and aliases) whenever the registry can be reached (tracking/client.py). The score
of a version is that of its engine, as stage=benchmark asked it. This stage compares it with the
champion on the same questions, and asks the champion's engine again where it has not answered them
yet. The tracker decides, because only the registry knows which version is champion by then
(tracking/champion_rule.py). What was trained, scored and exported comes from the artifacts, never
from the current settings, which may differ. This module does not import MLflow.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.evaluate import BASE, CHAMPION, SERVED, EvaluateConfig
from pipeline.config.schema import Config
from pipeline.core.artifact import SCRATCH, Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.stage import Stage
from pipeline.engines.registered import Champion, champion_of, engine_with
from pipeline.evaluation import report
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.served import describe, key_of, read_scores
from pipeline.evaluation.slices import Slice
from pipeline.optimization.formats import FORMATS
from pipeline.tracking import champion_rule, registry_reader

STAGE = Stage(
    version=3,
    libraries=("mlflow", "aiohttp", "numpy"),
    # Of the metrics by which versions are compared.
    optional_libraries=("httpx", "rapidfuzz", "sacrebleu", "sentence-transformers", "jsonschema",
                        "torch", "transformers", "tokenizers", "jinja2"),
)  # fmt: skip


REQUEST, CARD, SCORES = "registration.json", "MODEL_CARD.md", "scores.json"


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write registration.json and MODEL_CARD.md, and push the files to register.store.

    Raises:
        ArtifactError: the artifacts were not made from one another. PipelineError: the store
        cannot be used.
    """
    _require_one_lineage(inputs)
    evaluate, trained = inputs["evaluate"], inputs["finetune"].manifest.config
    models = json.loads((evaluate.path / "report.json").read_text())["models"]
    served = json.loads((inputs["benchmark"].path / "report.json").read_text())["served"]
    rules = champion_rules(config, inputs)
    benchmark = inputs["benchmark"].path
    scores = {rule.key: read_scores(benchmark, rule.metric, rule.slice) for rule in rules}
    shipped = inputs["export"].manifest.proof["format"]
    gate = _gate(inputs)
    metric = report.main_metric(served)
    value = served[metric.name]["value"]
    metrics = {
        f"{metric.name}/{report.key(name)}": model[metric.name]["value"]
        for name, model in models.items()
        if metric.name in model
    }
    metrics[f"{metric.name}/served"] = value
    comparisons = compare_with_champion(config, inputs, rules, scores, out)
    overruled = {
        stage: made.manifest.proof["overruled"]
        for stage, made in inputs.items()
        if "overruled" in made.manifest.proof
    }
    request = {
        "name": config.register_.name,
        "metric": report.facts(metric),
        metric.name: value,
        "gate_passed": gate is None,
        "gate_reason": gate or "",
        # What the registry's champion rule compares, and how it says so.
        "rules": [
            {
                "name": rule.name,
                "key": rule.key,
                "metric": report.facts(rule.shown(served)),
                "margin": rule.margin,
                "by": rule.by,
                "comparison": comparisons[rule.key],
            }
            for rule in rules
        ],
        "overrule": config.register_.overrule,
        "served": served,
        "overruled": overruled,
        "params": {
            "base": inputs["merge"].manifest.config["model"]["name"],
            "method": trained["finetune"]["method"],
            "format": shipped,
            "engine": served["runtime"],
            "precision": served["precision"],
            "sampling": json.dumps(served["sampling"]),
            "seed": str(trained["seed"]),
        },
        "metrics": metrics | _prefixed("benchmark", inputs["benchmark"].manifest.metrics),
        "tags": {
            metric.name: repr(value),  # unrounded
            "measured": f"served by {describe(served)}",
            "format": shipped,
            "gate": "passed" if gate is None else "failed",
            "dataset": inputs["prepare"].manifest.digest,
            **({"overruled": json.dumps(overruled)} if overruled else {}),
            **{f"digest.{stage}": artifact.manifest.digest for stage, artifact in inputs.items()},
            **_stored(config, inputs),
        },
        "artifacts": {stage: _location(artifact) for stage, artifact in inputs.items()},
        "serve": "python -m pipeline stage=serve",
    }
    (out / REQUEST).write_text(json.dumps(request, indent=1, sort_keys=True) + "\n")
    (out / SCORES).write_text(json.dumps(scores, indent=0, sort_keys=True) + "\n")
    (out / CARD).write_text(_card(config.register_.name, inputs, models, served, shipped))
    return Outcome(
        "registration",
        metrics={metric.name: value, "gate_passed": float(gate is None)},
        proof={
            "digests": {stage: artifact.manifest.digest for stage, artifact in inputs.items()},
            "comparisons": comparisons,
            "overrule": config.register_.overrule,
        },
        measured=(REQUEST,),  # it has the benchmark's times
    )


def _gate(inputs: Mapping[str, Artifact]) -> str | None:
    """Why a gate refused: that of the models or that of the served engine; None if neither did."""
    failures = (inputs[stage].manifest.failure for stage in ("evaluate", "benchmark"))
    return "; ".join(filter(None, failures)) or None


@dataclass(frozen=True)
class Rule:
    """A condition against the champion. key: of its scores, as in "exact_match on tag cards"."""

    name: str
    metric: str
    slice: Slice | None
    margin: float
    by: str

    @property
    def key(self) -> str:
        return key_of(self.metric, self.slice)

    def shown(self, served: Mapping[str, Any]) -> Metric:
        """The metric, as the benchmark's report shows it."""
        return report.metric_of(served.get("metrics", {}).get(self.metric) or {})


def champion_rules(config: Config, inputs: Mapping[str, Artifact]) -> list[Rule]:
    """The gate's conditions against the champion, as the benchmark was made with them."""
    found = inputs["benchmark"].manifest.config.get("evaluate")
    settings = EvaluateConfig.model_validate(found) if found else config.evaluate
    return [
        Rule(name, settings.metric_of(condition), condition.slice, condition.margin or 0.0,
             condition.by)
        for name, condition in settings.conditions(SERVED, against=CHAMPION).items()
    ]  # fmt: skip


def compare_with_champion(
    config: Config,
    inputs: Mapping[str, Artifact],
    rules: Sequence[Rule],
    scores: Mapping[str, Mapping[str, float]],
    out: Path,
) -> dict[str, dict[str, Any]]:
    """How this version compares with the champion on the same questions, for the record, by rule.

    scores: of this version, by a rule's key, then by question. The champion's are those that it was
    registered with, if it has answered every question; else its engine is asked all of them again,
    if it is still here; else the questions count that both have answered.

    Returns:
        by the rule's key: champion: its version, or None. scores: where its scores come from.
        result: the figures, or None. becomes_champion: what follows, if it is still champion when
        this version is registered. reason: why there is no result.
    """

    def without(reason: str) -> dict[str, dict[str, Any]]:
        return {r.key: {"champion": None, "result": None, "reason": reason} for r in rules}

    if not config.tracking.enabled:
        return without("tracking.enabled=false")
    try:
        champion = champion_of(config) if rules else None
    except PipelineError as error:
        return without(str(error))
    if champion is None:
        return without("there is no champion")
    theirs, origin, reason = champion.scores, "registered with it", ""
    if any(not scores[rule.key].keys() <= theirs.get(rule.key, {}).keys() for rule in rules):
        try:
            theirs = _ask(champion, inputs, rules, config, out)
            origin = "its engine was asked again"
        except PipelineError as error:
            reason = f"its engine cannot be asked these questions: {error}"
    served = json.loads((inputs["benchmark"].path / "report.json").read_text())["served"]
    compared = {}
    for rule in rules:
        higher = rule.shown(served).higher_is_better
        found = champion_rule.compare(
            scores[rule.key], theirs.get(rule.key, {}), higher_is_better=higher
        )
        entry: dict[str, Any] = {"champion": champion.version, "result": None, "reason": reason}
        if found is not None:
            entry |= {
                "scores": origin,
                "result": asdict(found),
                "margin": rule.margin,
                "becomes_champion": champion_rule.wins(
                    found, margin=rule.margin, higher_is_better=higher, by=rule.by
                ),
            }
        compared[rule.key] = entry
    return compared


def _ask(
    champion: Champion,
    inputs: Mapping[str, Artifact],
    rules: Sequence[Rule],
    config: Config,
    out: Path,
) -> dict[str, dict[str, float]]:
    """Ask the champion's engine the test questions, as stage=benchmark asked the new one; its
    scores by a rule's key.

    Raises:
        PipelineError: the engine is no longer here, or cannot be served, or a metric fails.
    """
    from pipeline.data.dataset import read_split
    from pipeline.evaluation.measure import measure
    from pipeline.evaluation.predictions import read_predictions
    from pipeline.evaluation.resources import Resources, metrics_of
    from pipeline.evaluation.served import scores
    from pipeline.serving.benchmark.serving_engine import ask
    from pipeline.serving.server_process import running_server

    engine = engine_with(champion.engine, config.artifacts)
    if engine is None:
        raise ArtifactError(f"engine {champion.engine[:12]} is not in {config.artifacts}")
    rows = read_split(inputs["prepare"].path, "test")
    asked, model = inputs["benchmark"].manifest.config, config.model.name
    settings = EvaluateConfig.model_validate(asked["evaluate"])
    get_console().print(
        f"asking version {champion.version}, the champion, the {len(rows)} test questions"
    )
    scratch = out / SCRATCH
    scratch.mkdir(exist_ok=True)
    with running_server(engine.path, model=model, log=scratch / "champion.log") as server:
        answers, _ = ask(
            server,
            engine,
            rows,
            model=model,
            most_tokens=settings.max_new_tokens,
            seed=asked["seed"],
            concurrency=max(asked["benchmark"]["concurrency"]),
        )
    earlier = read_predictions(inputs["evaluate"].path, rows)
    base = earlier[BASE].answers
    named = {rule.metric for rule in rules}
    metrics = {name: metric for name, metric in metrics_of(settings).items() if name in named}
    measured = measure(
        metrics,
        replace(answers, asked=base.asked, base=base.texts),
        Resources(settings, scratch, seed=asked["seed"]),
        served=True,
    )
    if measured.failures:
        raise PipelineError("; ".join(measured.failures.values()))
    return {rule.key: scores(rows, measured, rule.metric, rule.slice) for rule in rules}


def _require_one_lineage(inputs: Mapping[str, Artifact]) -> None:
    """Refuse artifacts of different weights: a stage that runs alone does not update later ones."""
    for stage, artifact in inputs.items():
        for source, digest in artifact.manifest.inputs.items():
            if source in inputs and digest != inputs[source].manifest.digest:
                raise ArtifactError(
                    f"{artifact.path} was made from another {source} than {inputs[source].path}: "
                    f"run `python -m pipeline stage={stage}` again with matching settings"
                )


def _stored(config: Config, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Tags that say what was trained, what the engine needs, and where the version's files are.

    They are pushed first.
    """
    engine, trained = inputs["build"], inputs["finetune"].manifest.config["finetune"]
    dataset = inputs["prepare"].manifest
    rows = dataset.metrics.get("train_rows")
    tags = {
        registry_reader.TRAINED: f"{inputs['merge'].manifest.config['model']['name']} by "
        f"{trained['method']} on {dataset.config['data']['folder']}"
        + (f" ({rows:,.0f} rows)" if rows else ""),
        registry_reader.BYTES: str(engine.manifest.bytes),
        # What a machine must have to open it, to be known before the engine is fetched.
        registry_reader.RUNTIME: json.dumps(_described(engine)),
    }
    if config.register_.store is None:
        return tags
    from pipeline.deployment.store.places import open_store
    from pipeline.deployment.store.transfer import push

    adapter = ("finetune",) if inputs["finetune"].kind == "nemo_adapter" else ()
    pushed = {stage: inputs[stage] for stage in ("build", "merge", "export", *adapter)}
    with closing(open_store(config.register_.store, config)) as store:
        bundle = push(pushed, store)
    where = {registry_reader.STORE: store.address, registry_reader.BUNDLE: bundle.blob.sha256}
    return tags | where


def _described(engine: Artifact) -> dict[str, Any]:
    """The content of engine.json without the settings, which may be long."""
    content = json.loads((engine.path / "engine.json").read_text())
    return {name: content[name] for name in sorted(content) if name != "settings"}


def _location(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "kind": manifest.kind,
        "path": str(artifact.path),
        "digest": manifest.digest,
        "bytes": manifest.bytes,
    }


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _card(
    name: str,
    inputs: Mapping[str, Artifact],
    models: Mapping[str, Any],
    served: Mapping[str, Any],
    shipped: str,
) -> str:
    """The model card in Markdown: what it is, how good it is, how it was made, where it is."""
    form = FORMATS[shipped].title
    gate, code = _gate(inputs), inputs["merge"].manifest.code
    base = inputs["merge"].manifest.config["model"]["name"]
    data = inputs["prepare"].manifest.config["data"]["folder"]
    trained, length = inputs["finetune"].manifest.config, inputs["finetune"].manifest.proof
    settings, metric = trained["finetune"], report.main_metric(served)
    method = {"lora": "LoRA", "dora": "DoRA", "sft": "full fine-tuning"}[settings["method"]]
    if settings["objective"] != "sft":
        method += f" with {settings['objective'].upper()}"
    lines = [
        f"# {name}",
        "",
        f"{base} tuned by {method} on {data}, exported as **{form}** (`{shipped}`), served by "
        f"**{describe(served)}**. Gate: **{'passed' if gate is None else f'failed ({gate})'}**.",
        "",
        f"| model | {metric.title} | 95 % interval |",
        "|---|--:|--:|",
    ]
    measured = {report.label(m): score for m, score in models.items() if metric.name in score}
    for model, score in {**measured, f"served ({describe(served)})": served}.items():
        value, low, high = (metric.text(score[metric.name][k]) for k in ("value", "low", "high"))
        mark = "**" if score is served else ""
        lines.append(f"| {mark}{model}{mark} | {mark}{value}{mark} | {low} to {high} |")
    lines += [
        "",
        "Measured on held-out questions whose phrasings were not in the training data. A simulated "
        "format is the tuned model, rounded as the format rounds. The last line is the engine, "
        "asked through HTTP as a client asks that sets nothing.",
        *(
            line
            for stage, artifact in inputs.items()
            if (said := artifact.manifest.proof.get("overruled"))
            for line in (
                "",
                f"The proof of stage={stage} was overruled ({said['reason']}): {said['refusal']}.",
            )
        ),
        "",
        f"- Training: {length['length']}, learning rate {settings['learning_rate']:g}, "
        f"seed {trained['seed']}; {length['kept']}",
        f"- Code: {code.get('commit', 'unknown')}"
        + (" with uncommitted changes" if code.get("changed") else ""),
        "",
        "| artifact | MiB | sha256 | where |",
        "|---|--:|---|---|",
    ]
    for stage, artifact in inputs.items():
        manifest = artifact.manifest
        lines.append(
            f"| {stage} ({manifest.kind}) | {manifest.bytes / 2**20:.1f} "
            f"| `{manifest.digest[:12]}` | `{artifact.path}` |"
        )
    return "\n".join(lines) + "\n"
