"""The command line of one stage: what it gives has an effect, or is what the inputs were made with,
or is refused."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config, load
from pipeline.core.artifact import VARIANTS, Artifact
from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.orchestration import compose, lineage
from pipeline.orchestration.effects import GRAPH, is_read
from pipeline.orchestration.graph import read_graph, select
from tests.made_artifacts import make_artifact
from tests.unit.config.schema_walk import Leaf, leaves

Tree = dict[str, Any]
KINDS = {"import": "nemo_checkpoint", "build": "engine"}
DEFAULTS = compose.compose([])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of a whole run with the demo's settings."""
    folder = tmp_path_factory.mktemp("artifacts")
    make(folder, DEFAULTS)
    return folder


def make(
    folder: Path, tree: Tree, stages: Sequence[str] = GRAPH, *, content: str = "x"
) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for name, node in read_graph(tree).items():
        inputs = {n: found[n] for n in node.inputs}
        settings = json.loads(json.dumps(select(tree, node.params)))
        if name in stages:
            found[name] = make_artifact(
                folder, name, KINDS.get(name, name), inputs=inputs, config=settings,
                files={"data.txt": f"{name} {content}"},
            )  # fmt: skip
    return found


def check(stage: str, folder: Path, *overrides: str) -> None:
    tree = compose.compose([*overrides, f"artifacts={folder}"])
    lineage.check(stage, tree, load(tree), overrides)


def refusal(stage: str, folder: Path, *overrides: str) -> str:
    with pytest.raises(PipelineError) as caught:
        check(stage, folder, *overrides)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError)
    return str(caught.value)


LOCAL = ("model=local", "model.path=/other", "model.name=other")
FILES = ("data=files", "data.folder=/d", "data.train=[a.jsonl]", "data.test=[b.jsonl]")


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_alone_is_accepted(made: Path, stage: str) -> None:
    check(stage, made)


@pytest.mark.parametrize("stage", ["prepare", "import"])
def test_an_option_has_an_effect_if_one_of_its_keys_has(tmp_path: Path, stage: str) -> None:
    """model=local gives a type, too, which these stages do not read."""
    check(stage, tmp_path / "none", *LOCAL)


@pytest.mark.parametrize(
    ("stage", "overrides", "key", "was"),
    [
        ("finetune", LOCAL, "model.path", "data/base_model"),
        ("merge", LOCAL, "model.path", "data/base_model"),
        ("merge", ("model.name=other",), "model.name", "harbor-support"),
        ("evaluate", LOCAL, "model.path", "data/base_model"),
        ("finetune", FILES, "data.folder", "data/bank"),
        ("finetune", ("prepare.max_length=128",), "prepare.max_length", "256"),
        ("build", ("quantize=int4_awq",), "quantize.format", "fp8"),
        ("build", ("finetune=sft",), "finetune.method", "lora"),
        ("build", ("seed=5",), "seed", "1"),
        ("build", ("finetune.adapter={rank: 8}",), "finetune.adapter.rank", "64"),
        ("export", ("quantize.exclude=[lm_head,o_proj]",), "quantize.exclude", r"\['lm_head'\]"),
        ("quantize", ("model.dtype=float32",), "model.dtype", "bfloat16"),
        ("benchmark", ("engine.max_batch_size=3",), "engine.max_batch_size", "16"),
        ("benchmark", ("engine.arguments.x=1",), "engine.arguments.x", "nothing"),
        ("register", ("evaluate.batch_size=3",), "evaluate.batch_size", "128"),
        ("serve", ("engine=hf",), "engine.name", "auto"),
        ("serve", LOCAL, "model.path", "data/base_model"),
        ("profiles", ("quantize.calibration.rows=7",), "quantize.calibration.rows", "64"),
        ("register", ("experiment=llama3_8b", "model.path=/m"), "model.", ""),
    ],
)
def test_what_an_input_was_made_with_otherwise_is_refused(
    made: Path, stage: str, overrides: tuple[str, ...], key: str, was: str
) -> None:
    said = refusal(stage, made, *overrides)
    assert f"stage={stage} reads what stage=" in said
    assert f"{key}" in said
    assert "run stage=all" in said
    if was:
        assert re.search(rf"{re.escape(key)}={was}, and", said)


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("finetune", ("model=bundled", "data=bank", "prepare.max_length=256")),
        ("finetune", ("finetune.max_steps=5", "seed=5")),
        ("merge", ("model.dtype=float32", "finetune=lora")),
        ("export", ("quantize=int4_awq", "export.tensor_parallel=2")),
        ("build", ("engine=hf", "quantize=fp8")),
        ("benchmark", ("seed=5", "benchmark.requests=2")),
        ("serve", ("serve.port=1", "model.name=another", "engine=auto")),
        ("finetune", ("launcher=torchrun", "launcher.nodes=2", "tracking.enabled=false")),
        ("build", ("model.path=./data/../data/base_model",)),
        ("verify", ("launcher=local",)),
        ("doctor", ("tracking.enabled=false",)),
    ],
)
def test_what_has_an_effect_or_is_as_it_was_made_is_accepted(
    made: Path, stage: str, overrides: tuple[str, ...]
) -> None:
    check(stage, made, *overrides)


@pytest.mark.parametrize(
    ("stage", "overrides", "reader"),
    [
        ("prepare", ("finetune.max_steps=5",), "finetune"),
        ("prepare", ("engine=hf",), "build"),
        ("import", ("data.folder=/d",), "prepare"),
        ("import", ("model.dtype=float32",), "merge"),
        ("all", ("serve.port=9",), "serve"),
        ("all", ("plan.gpu=h100",), "all"),
        ("doctor", ("finetune.max_steps=5",), "finetune"),
        ("verify", ("seed=2",), "prepare, finetune, quantize, evaluate"),
        ("config", (), ""),
    ],
)
def test_what_no_earlier_stage_reads_is_refused(
    made: Path, stage: str, overrides: tuple[str, ...], reader: str
) -> None:
    if not overrides:
        check(stage, made, "finetune.max_steps=5", "serve.port=9")
        return
    said = refusal(stage, made, *overrides)
    assert f"has no effect on stage={stage}" in said


def test_a_server_always_runs_here(made: Path) -> None:
    words = ("launcher=kubernetes", "launcher.dry_run=true", "launcher.container_image=i",
             "launcher.claim=c")  # fmt: skip
    said = refusal("serve", made, *words)
    assert said.startswith("launcher=kubernetes has no effect: stage=serve always runs on this")


def test_a_registered_version_has_its_engine(made: Path) -> None:
    assert "serve.version=3" in refusal("serve", made, "serve.version=3", "engine=hf")


@pytest.mark.parametrize("stage", ["finetune", "merge", "evaluate", "build"])
def test_a_manifest_never_names_a_model_that_it_was_not_made_from(
    tmp_path: Path, stage: str
) -> None:
    """After a run with one's own model, a stage without model=… has the demo's settings."""
    make(tmp_path, compose.compose(list(LOCAL)))
    said = refusal(stage, tmp_path)
    assert "this command has the defaults of model.path=data/base_model: give model=local" in said
    check(stage, tmp_path, *LOCAL)


def test_inputs_of_two_models_are_refused(tmp_path: Path) -> None:
    make_artifact(tmp_path, "prepare", "dataset", config={"model": DEFAULTS["model"]})
    tree = compose.compose(list(LOCAL))
    make_artifact(tmp_path, "import", "nemo_checkpoint", config={"model": tree["model"]})
    with pytest.raises(ArtifactError, match=r"model\.path=data/base_model and .* from .*=/other"):
        check("finetune", tmp_path)


def test_an_input_that_was_replaced_since_is_found_among_the_variants(tmp_path: Path) -> None:
    made = make(tmp_path, DEFAULTS)
    variant = tmp_path / VARIANTS / "quantize-0"
    variant.parent.mkdir()
    made["quantize"].path.rename(variant)
    tree = compose.compose(["quantize=int8_sq"])
    settings = {"quantize": tree["quantize"], "seed": 1}
    make_artifact(tmp_path, "quantize", "quantized", config=settings, files={"a.txt": "other"})
    check("build", tmp_path, "quantize=fp8")
    assert "quantize.format=fp8" in refusal("build", tmp_path, "quantize=int8_sq")


def test_missing_inputs_are_for_the_stage_to_say(tmp_path: Path) -> None:
    check("build", tmp_path, "quantize=int4_awq", *LOCAL)


def test_a_params_file_is_compared_whole(made: Path) -> None:
    tree = compose.compose([*LOCAL, f"artifacts={made}"])
    with pytest.raises(ConfigError, match=r"model\."):
        lineage.check_made("merge", tree, load(tree))
    tree = compose.compose([f"artifacts={made}"])
    lineage.check_made("merge", tree, load(tree))


def other_value(leaf: Leaf, tree: Mapping[str, Any]) -> Any:
    """Another value of a setting, within its bounds; None where there is none to make up."""
    now: Any = tree
    for part in leaf.name.split("."):
        now = now[part]
    if isinstance(now, bool):
        return not now
    if leaf.is_number and now is not None:
        return next(
            (v for v in (now + 1, now / 2, now + 0.25) if v != now and leaf.allows(v)), None
        )
    if "enum" in leaf.schema:
        return next(name for name in leaf.schema["enum"] if name != now)
    return f"{now}-x" if isinstance(now, str) else None


LEAVES = [leaf for leaf in leaves(Config) if not leaf.name.startswith(("launcher.", "artifacts"))]


@pytest.mark.parametrize("stage", [*GRAPH, "serve"])
def test_every_setting_on_every_stage_has_an_effect_or_is_refused(
    made: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole table: another value of each setting, on the command line of each stage."""
    graph = read_graph(DEFAULTS)
    monkeypatch.setattr(lineage, "read_graph", lambda tree: graph)  # read once
    tried, passed = 0, []
    for leaf in LEAVES:
        value = other_value(leaf, DEFAULTS)
        if value is None:
            continue
        tried += 1
        tree = json.loads(json.dumps(DEFAULTS)) | {"artifacts": str(made)}
        *sections, key = leaf.name.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
        config = load({**DEFAULTS, "artifacts": str(made)})
        words = [f"{leaf.name}={value}"]
        if is_read(stage, leaf.name):
            continue  # beside which other settings is the matter of another test
        try:
            lineage.check(stage, tree, config, words)
        except ConfigError as error:
            passed += [leaf.name] * (leaf.name not in str(error))
        else:
            passed.append(leaf.name)
    assert passed == []
    assert tried > 60
