"""dvc.yaml, the stages' files and the settings speak of the same things."""

import ast
import sys

import pytest
import yaml

from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.core.stage import stage_module
from pipeline.models.chat import tokenizer
from pipeline.orchestration import compose, runner
from pipeline.orchestration.graph import OUTSIDE, read_graph, select
from pipeline.orchestration.stage_versions import recorded
from tools import versions


@pytest.fixture(scope="module")
def tree():
    return compose.compose([])


def test_every_stage_has_a_file_and_every_file_is_a_stage(tree):
    files = {p.stem for p in (ROOT / "pipeline/stages").glob("*.py")} - {"__init__"}
    assert {name.removesuffix("_") for name in files} == set(read_graph(tree)) | set(OUTSIDE)


def test_every_stage_explains_itself_in_one_line(tree):
    for name in [*read_graph(tree), *OUTSIDE]:
        file = ROOT / "pipeline/stages" / f"{'import_' if name == 'import' else name}.py"
        line = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
        assert 10 < len(line) <= 100, f"{file} needs a first line for --help"


def test_inputs_come_before_their_readers(tree):
    seen = []
    for node in read_graph(tree).values():
        assert set(node.inputs) <= set(seen), node.name
        seen.append(node.name)


def test_files_and_settings_that_dvc_watches_exist(tree):
    for node in read_graph(tree).values():
        select(tree, node.params)
        for file in node.files:
            assert (ROOT / file).exists(), f"{node.name} depends on {file}"


def test_dvc_depends_on_manifests_never_on_artifact_folders():
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        if name == "versions":
            continue
        inside = [d for d in stage["deps"] if d.startswith("artifacts/")]
        assert inside.pop(0) == f"artifacts/versions/{name}.json"
        inside = [d for d in inside if d != "artifacts/versions/model.json"]
        assert all(d.endswith("/manifest.json") for d in inside)
        out, *_ = stage["outs"]  # beside figures for DVC: test_figures.py
        assert list(out.values()) == [{"cache": False, "persist": True}]


def test_stages_do_not_import_one_another_nor_heavy_libraries():
    heavy = {"torch", "transformers", "nemo", "megatron", "modelopt", "mlflow", "onnxruntime"}
    for file in (ROOT / "pipeline/stages").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in heavy, f"{file}: {name} belongs inside run()"
                assert not name.startswith("pipeline.stages"), f"{file} imports another stage"


def test_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match=r"a\.c"):
        select({"a": {"b": 1}}, ("a.c",))


def test_no_code_changed_without_a_decision_on_its_results():
    changed = sorted(
        name for name, entry in versions.as_recorded().items() if recorded().get(name) != entry
    )
    assert not changed, (
        f"the code of {', '.join(changed)} changed: run `make versions` if results are the same, "
        f'else `make versions NEW="{" ".join(changed)}"`'
    )


# They fetch, move, print or draw what was made, or start the process that makes it.
DECIDE_NOTHING = {
    "rich",
    "matplotlib",
    "safetensors",
    "psutil",
    "pyarrow",
    "fastapi",
    "yaml",
    "llguidance",
    "huggingface_hub",
    "requests",
    "httpx",
    "pydantic",
    "pymilvus",
    "milvus_lite",
    "boto3",
    "botocore",
    "fsspec",
    "ray",
}
DISTRIBUTIONS = {
    "markdown_it": "markdown-it-py", "markupsafe": "jinja2", "fiddle": "nemo_run",
    "nemo": "nemo_toolkit", "megatron": "megatron-core", "modelopt": "nvidia-modelopt",
    "transformer_engine": "transformer-engine", "transformer_engine_torch": "transformer-engine",
    "onnxruntime_genai": "onnxruntime-genai", "sentence_transformers": "sentence-transformers",
    "referencing": "jsonschema", "docx": "python-docx", "presidio_analyzer": "presidio-analyzer",
    "tldextract": "presidio-analyzer", "triton": "torch", "google": "protobuf", "grpc": "grpcio",
}  # fmt: skip


def test_a_stage_declares_the_libraries_that_its_code_imports():
    parts = versions.components()
    own = {module for part in parts for module in part.modules}
    code = {
        name: (versions.code_of([stage_module(name).__name__], without=own), entry["libraries"])
        for name, entry in recorded().items()
        if "/" not in name
    }
    code |= {part.name: (versions.code_of(part.modules), part.libraries) for part in parts}
    shared = stage_module("build").STAGE.libraries  # of every engine, as build makes them all
    for name, (files, declared) in code.items():
        known = {*declared, *(shared if "/" in name else ())} | DECIDE_NOTHING
        for file in files:
            for library in _third_party(file):
                distribution = DISTRIBUTIONS.get(library, library)
                assert distribution in known, f"{name} uses {distribution} in {file}"


def _third_party(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"pipeline"}


def test_no_stage_depends_on_code(tree):
    for node in read_graph(tree).values():
        assert not [f for f in node.files if f.is_relative_to("pipeline")], node.name


@pytest.mark.parametrize("file", [*tokenizer.FILES, "config.json", "model.safetensors"])
def test_a_dataset_depends_on_every_file_of_the_model_that_is_read(tmp_path, file):
    model, folder = tmp_path / "model", tmp_path / "artifacts"
    model.mkdir()
    tree = compose.compose([f"model.path={model}", f"artifacts={folder}"])

    def fingerprint():
        return runner.plan(read_graph(tree)["prepare"], {}, tree, load(tree)).fingerprint

    before = fingerprint()
    (model / file).write_text("{}")
    assert fingerprint() != before
