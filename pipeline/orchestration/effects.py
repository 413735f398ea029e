"""Which stage reads a setting, and beside which other settings it has an effect: two tables.

A setting that a command gives has an effect, or the command is refused (lineage.py asks). The
tables say so for each key of the schema, by its name or by the name of a section that it is in; the
longest name counts. Tests walk the schema: each key has a reader, and each condition is tried.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.config.finetune import OBJECTIVES, PreferenceConfig
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, shown
from pipeline.engines.record import EngineRecord
from pipeline.engines.registry import AUTO, ENGINES, behind, named
from pipeline.optimization.formats import FORMATS
from pipeline.orchestration.environment import EXPERIMENT, TRACKING_URI, given_in_environment

# Stages of the graph, in its order.
GRAPH = (
    "prepare", "import", "finetune", "merge", "quantize", "evaluate", "export", "build",
    "benchmark", "register", "index",
)  # fmt: skip
# Stages that run the graph, or show what it would do: they read what any of its stages reads.
WHOLE = ("all", "retrain", "plan")
# Stages that ask the registry, and change nothing of the chain.
REGISTRY = ("pull", "canary", "promote", "rollback", "versions", "lineage", "clean")
LOCAL_LAUNCHER = "local"

# Section or key → the stages on whose result or behaviour it has an effect. `config` prints them
# all, and WHOLE are not listed where a stage of the graph is.
READERS: Mapping[str, tuple[str, ...]] = {
    "seed": (
        "prepare", "inspect", "synthesize", "finetune", "quantize", "evaluate", "benchmark",
        "canary",
    ),
    "artifacts": (*GRAPH, *WHOLE, "serve", *REGISTRY, "profiles", "verify", "doctor", "inspect",
                  "graph"),
    "verify": (*GRAPH, "all", "retrain", "serve"),
    "model": ("prepare", "import", "profiles", "doctor", "inspect"),
    "model.path": ("prepare", "import", "profiles", "doctor", "inspect", "graph"),
    "model.name": (
        "prepare", "import", "benchmark", "profiles", "doctor", "inspect", "serve", *REGISTRY,
    ),  # the default of register.name
    "model.dtype": ("merge", "profiles", "doctor"),
    "data": ("prepare", "inspect", "lineage"),
    # The last stage's settings have these as defaults.
    "data.folder": ("prepare", "inspect", "lineage", "synthesize", "graph"),
    "data.sources": ("prepare", "inspect", "lineage", "synthesize"),
    "prepare": ("prepare", "inspect"),
    "prepare.near_duplicate_threshold": ("prepare", "inspect", "synthesize"),
    "finetune": ("finetune",),
    "finetune.objective": ("prepare", "finetune", "inspect", "lineage"),
    "finetune.adapter.rank": ("finetune", "profiles"),
    "quantize": ("quantize",),
    "quantize.format": ("quantize", "export", "profiles"),
    "quantize.kv_cache": ("quantize", "profiles"),
    "evaluate": ("evaluate",),
    **{
        f"evaluate.{name}": ("evaluate", "canary")
        for name in ("max_new_tokens", "metrics", "json_schema", "pattern", "refusal_pattern",
                     "embedder", "judge")
    },
    "evaluate.gate": ("evaluate", "benchmark", "canary"),
    "evaluate.benchmarks": ("benchmark",),
    "evaluate.benchmark_tasks": ("benchmark",),
    "evaluate.benchmark_limit": ("benchmark",),
    "export": ("export",),
    "export.tensor_parallel": ("export", "profiles"),
    "engine": ("build", "profiles"),
    "index": ("index",),
    "benchmark": ("benchmark",),
    "register": ("register",),
    "register.name": ("register", "serve", *REGISTRY),
    "register.store": ("register", "serve", "pull", "canary"),
    "register.version": ("pull", "canary", "promote"),
    "register.reason": ("canary", "promote", "rollback"),
    "register.overrule": ("register", "canary", "promote"),
    "pull": ("pull",),
    "canary": ("canary",),
    "serve": ("serve", "canary"),  # of the candidate's server
    **dict.fromkeys(("serve.port", "serve.version", "serve.follow", "serve.follow_seconds"),
                    ("serve",)),
    "serve.record": ("serve", "retrain", "lineage"),  # the default of retrain.recordings
    "serve.feedback": ("serve", "canary", "lineage"),
    "retrain": ("retrain",),
    "retrain.recordings": ("retrain", "lineage"),
    "lineage": ("lineage",),
    "graph": ("graph",),
    "clean": ("clean",),
    "synthesize": ("synthesize",),
    "inspect": ("inspect",),
    "profiles": ("profiles",),
    "plan": ("plan",),
    "launcher": (*GRAPH, *WHOLE),
    "tracking": (*GRAPH, "all", "retrain", "serve"),
    "tracking.uri": (*GRAPH, "all", "retrain", "serve", *REGISTRY),
    "tracking.experiment": (*GRAPH, "all", "retrain", "serve", *REGISTRY),
}  # fmt: skip


def entry_of(key: str) -> str:
    """The entry of READERS that holds a key: the longest that it begins with."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (name := ".".join(parts[:end])) in READERS:
            return name
    raise KeyError(key)


def readers(key: str) -> tuple[str, ...]:
    """The stages that read a key, in the order of the graph."""
    stages = READERS[entry_of(key)]
    whole = WHOLE if set(stages) & set(GRAPH) else ()
    return (*stages, *(stage for stage in whole if stage not in stages), "config")


def is_read(stage: str, key: str) -> bool:
    """Whether a key has an effect on a stage."""
    return stage in readers(key)


@dataclass(frozen=True)
class Condition:
    """A key that has an effect only beside certain settings.

    key: its name, or that of a section. holds: whether it has one in a configuration. why: why not,
    and what to set instead; ends the sentence "… has no effect: ".
    """

    key: str
    holds: Callable[[Config], bool]
    why: Callable[[Config], str]


def _is_adapter(config: Config) -> bool:
    return config.finetune.method != "sft"


def _quantizes(config: Config) -> bool:
    formats = (config.quantize.format, *config.quantize.compare)
    return any(FORMATS[name].quantized for name in formats)


def _rounds(config: Config) -> bool:
    record = named(behind(config.engine).name)
    return bool(record is None or record.precisions)


def _has_adapters(config: Config) -> bool:
    record = named(config.engine.name)
    return record is None or "adapters" in record.features


def _speculates(config: Config) -> bool:
    record = named(config.engine.name)
    methods = {m for r in ([record] if record else ENGINES.values()) for m in _methods(r)}
    return config.engine.speculative in ("none", *methods)


def _methods(record: EngineRecord) -> Iterator[str]:
    return (method for methods in record.speculative.values() for method in methods)


def _takes_arguments(config: Config) -> bool:
    record = named(config.engine.name)
    return record is None or record.takes_arguments


def _names(pairs: Iterator[str]) -> str:
    return " or ".join(pairs)


def _objective_reads(name: str) -> Condition:
    """A setting of finetune.preference has an effect on the objectives whose record names it."""
    reading = [o for o, record in OBJECTIVES.items() if name in record.settings]
    return Condition(
        f"finetune.preference.{name}",
        lambda config: config.finetune.objective in reading,
        lambda config: (
            f"finetune.objective={config.finetune.objective} does not read it; "
            f"{_names(f'finetune.objective={o}' for o in reading)} does"
        ),
    )


def _metric_reads(setting: str, metrics: tuple[str, ...]) -> Condition:
    """A setting that has an effect only on some metrics."""
    return Condition(
        setting,
        lambda config: any(name in config.evaluate.measured for name in metrics),
        lambda config: (
            f"only {_names(iter(metrics))} reads it: add it to evaluate.metrics "
            f"({', '.join(config.evaluate.metrics)})"
        ),
    )


CONDITIONS = (
    Condition(
        "prepare.ray_address", lambda config: config.prepare.engine == "ray",
        lambda config: f"prepare.engine={config.prepare.engine} uses no cluster: set "
        "prepare.engine=ray",
    ),
    *map(_objective_reads, PreferenceConfig.model_fields),
    Condition(
        "finetune.adapter", _is_adapter,
        lambda _: "finetune=sft trains every weight and makes no adapter: choose finetune=lora",
    ),
    Condition(
        "finetune.micro_batch_size", lambda config: config.finetune.pack_length is None,
        lambda config: f"with finetune.pack_length={config.finetune.pack_length} a pack takes the "
        "place of a micro-batch: set finetune.pack_length=null",
    ),
    Condition(
        "finetune.warmup_share", lambda config: config.finetune.warmup_steps is None,
        lambda config: f"finetune.warmup_steps={config.finetune.warmup_steps} says how long the "
        "warm-up is: set finetune.warmup_steps=null",
    ),
    Condition(
        "finetune.decay_share", lambda config: config.finetune.schedule == "wsd",
        lambda config: f"finetune.schedule={config.finetune.schedule} falls over all steps after "
        "the warm-up, or not at all: set finetune.schedule=wsd",
    ),
    Condition(
        "finetune.min_learning_rate", lambda config: config.finetune.schedule != "constant",
        lambda _: "finetune.schedule=constant does not fall: choose another schedule",
    ),
    Condition(
        "finetune.early_stopping.min_improvement",
        lambda config: config.finetune.early_stopping.patience is not None,
        lambda _: "finetune.early_stopping.patience=null never ends training early: set it",
    ),
    Condition(
        "quantize.calibration", _quantizes,
        lambda _: "quantize=none calibrates nothing: choose a format",
    ),
    Condition(
        "quantize.exclude", _quantizes,
        lambda _: "quantize=none leaves every layer as it is: choose a format",
    ),
    *(
        _metric_reads(setting, metrics)
        for setting, metrics in {
            "evaluate.json_schema": ("json_schema",),
            "evaluate.pattern": ("pattern",),
            "evaluate.refusal_pattern": ("refusal_rate",),
            "evaluate.embedder": ("embedding_similarity",),
            "evaluate.general_text": ("general_perplexity",),
            "evaluate.judge": ("judge_score", "judge_wins"),
            "evaluate.judge.rubric": ("judge_score",),
        }.items()
    ),
    *(
        Condition(
            f"evaluate.{name}", lambda config: bool(config.evaluate.benchmarks),
            lambda _: "evaluate.benchmarks names no task: set it",
        )
        for name in ("benchmark_tasks", "benchmark_limit")
    ),
    Condition(
        "engine.precision", _rounds,
        lambda config: f"engine={config.engine.name} keeps the checkpoint's precision, which "
        "quantize=… chooses; "
        + _names(f"engine={r.name}" for r in ENGINES.values() if r.precisions)
        + " rounds weights itself",
    ),
    Condition(
        "engine.lora_rank", _has_adapters,
        lambda config: f"engine={config.engine.name} serves no LoRA adapters: choose "
        + _names(f"engine={r.name}" for r in ENGINES.values() if "adapters" in r.features),
    ),
    Condition(
        "engine.speculative", _speculates,
        lambda config: f"engine={config.engine.name} does not take it; "
        + _names(f"engine={r.name}" for r in ENGINES.values() if any(_methods(r)))
        + " does, on a CPU",
    ),
    Condition(
        "engine.speculative_tokens", lambda config: config.engine.speculative != "none",
        lambda _: "engine.speculative=none drafts nothing: set engine.speculative=prompt_lookup",
    ),
    Condition(
        "engine.arguments", _takes_arguments,
        lambda config: f"engine={config.engine.name} takes no arguments of its own; "
        + _names(f"engine={r.name}" for r in ENGINES.values() if r.takes_arguments)
        + " do",
    ),
    Condition(
        "serve.adapters_seconds", lambda config: config.serve.adapters is not None,
        lambda _: "the server has no folder of adapters: set serve.adapters",
    ),
    Condition(
        "serve.follow_seconds", lambda config: config.serve.follow is not None,
        lambda _: "the server follows no alias: set serve.follow=champion",
    ),
    *(
        Condition(
            f"canary.haproxy.{name}", lambda config: config.canary.haproxy.socket is not None,
            lambda _: "HAProxy does not split the traffic: set canary.haproxy.socket",
        )
        for name in ("backend", "candidate")
    ),
    *(
        Condition(
            f"canary.http_route.{name}", lambda config: config.canary.http_route.name is not None,
            lambda _: "no HTTPRoute splits the traffic: set canary.http_route.name",
        )
        for name in ("namespace", "stable", "candidate")
    ),
    Condition(
        "plan.gpus_per_node", lambda config: config.plan.gpu is not None,
        lambda _: "without plan.gpu the plan is for this machine and its GPUs: set plan.gpu=…",
    ),
    Condition(
        "retrain.schedule", lambda config: config.launcher.name == "kubernetes",
        lambda config: f"launcher={config.launcher.name} makes no CronJob: add "
        "launcher=kubernetes, or use cron, or retrain.every",
    ),
    Condition(
        "retrain.every",
        lambda config: config.launcher.name != "kubernetes" or config.retrain.schedule is None,
        lambda config: f"retrain.schedule={config.retrain.schedule} says when: give one of the two",
    ),
    *(
        Condition(
            f"tracking.{name}", lambda config: config.tracking.enabled,
            lambda _: "tracking.enabled=false tracks nothing: leave one of the two out",
        )
        for name in ("uri", "experiment", "upload_weights")
    ),
    Condition(
        "tracking.uri",
        lambda config: given_in_environment(TRACKING_URI) in (None, config.tracking.uri),
        lambda _: f"the environment variable {TRACKING_URI} comes first: unset it",
    ),
    Condition(
        "tracking.experiment",
        lambda config: given_in_environment(EXPERIMENT) in (None, config.tracking.experiment),
        lambda _: f"the environment variable {EXPERIMENT} comes first: unset it",
    ),
)  # fmt: skip


def check_conditions(stage: str, config: Config, given: Mapping[str, str]) -> None:
    """Refuse settings that have no effect beside the others.

    given: dotted keys that were given one by one, each with the word that gave it.

    Raises:
        ConfigError: names the setting, why it has no effect, and what to set instead.
    """
    for key, word in given.items():
        if not is_read(stage, key):
            continue
        for condition in CONDITIONS:
            if is_below(key, condition.key) and not condition.holds(config):
                raise ConfigError(f"{word} has no effect: {condition.why(config)}")
    _check_nodes(stage, config, given)
    _check_candidate(stage, config, given)
    _check_profile(config, given)
    _check_precision(config, given)


def is_below(key: str, section: str) -> bool:
    """Whether a key is a section, or is in it."""
    return key == section or key.startswith(f"{section}.")


def _check_nodes(stage: str, config: Config, given: Mapping[str, str]) -> None:
    """Only training uses several machines."""
    word = given.get("launcher.nodes")
    if word and stage in GRAPH and stage != "finetune" and config.launcher.nodes > 1:
        raise ConfigError(f"{word} has no effect on stage={stage}: only finetune uses several")


def _check_candidate(stage: str, config: Config, given: Mapping[str, str]) -> None:
    """A candidate whose server runs already has its own settings."""
    word = next((word for key, word in given.items() if is_below(key, "serve")), None)
    if word and stage == "canary" and config.canary.candidate is not None:
        raise ConfigError(
            f"{word} has no effect: the server at canary.candidate={config.canary.candidate} runs "
            "with settings of its own"
        )


def _check_profile(config: Config, given: Mapping[str, str]) -> None:
    """A profile names an engine, a precision, and whether it has adapters."""
    engine = config.engine
    if not engine.profile or "engine.profile" not in given:
        return
    runtime = next((name for name in ENGINES if engine.profile.startswith(f"{name}-")), None)
    if runtime and engine.name not in (AUTO, runtime):
        raise ConfigError(
            f"engine.profile={engine.profile} is of engine={runtime}, and engine={engine.name} was "
            "given: leave one of them out"
        )
    if engine.precision != AUTO and f"-{engine.precision}-" not in engine.profile:
        raise ConfigError(
            f"engine.profile={engine.profile} has a precision of its own, and engine.precision="
            f"{engine.precision} was given: leave one of them out"
        )


def _check_precision(config: Config, given: Mapping[str, str]) -> None:
    """A precision that the engine does not round to."""
    record, precision = named(behind(config.engine).name), config.engine.precision
    if "engine.precision" in given and record and precision not in (AUTO, *record.precisions):
        raise ConfigError(
            f"engine.precision={shown(precision)}: engine={record.name} rounds to "
            f"{', '.join(record.precisions)}"
        )
