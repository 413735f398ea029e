"""pull, promote, rollback, versions: against a registry over HTTP and a store in a folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.config.defaults import default_config
from pipeline.config.schema import Config
from pipeline.core.errors import ArtifactError, ConfigError, GateFailed, PipelineError
from pipeline.core.paths import ROOT
from pipeline.deployment import pull as pulling
from pipeline.deployment import version_table
from pipeline.deployment.pull import engine_of, find_version, moved_meanwhile
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.mlflow_files import MlflowFiles
from pipeline.deployment.store.places import open_store
from pipeline.deployment.store.transfer import push
from pipeline.engines.description import Description
from pipeline.engines.registry import ENGINES
from pipeline.stages import promote, pull, rollback, versions
from pipeline.tracking.champion_changes import Change, champion_before
from tests.made_artifacts import make_artifact
from tests.mlflow_registry import FakeRegistry, mlflow_registry

RUNTIME = ENGINES["onnxruntime"]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    with mlflow_registry() as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        monkeypatch.chdir(tmp_path)
        yield found


def configured(*words: str) -> Config:
    given = dict(word.split("=", 1) for word in words)
    settings = {name: int(text) if text.isdigit() else text for name, text in given.items()}
    return default_config({"register.name": "bank", "artifacts": "artifacts", **settings})


def described(runtime: str = "onnxruntime", version: str | None = "", **hardware: str) -> str:
    own = RUNTIME.version() or "" if version == "" else version or ""
    needs = hardware or RUNTIME.hardware()
    return json.dumps(asdict(Description(runtime, own, "int8", needs, "0" * 64, 4, 100, 200)))


def register(registry: FakeRegistry, number: int, where: Path, **tags: str) -> str:
    """A version whose engine was built in another folder; its digest."""
    made = make_artifact(where / str(number), "build", "engine", files={"model": f"v{number}"})
    store = Folder(where / "store")
    bundle = push({"build": made}, store)
    registry.versions[number] = {
        "gate": "passed", "exact_match": "0.9", "digest.build": made.manifest.digest,
        "store": store.address, "bundle": bundle.blob.sha256, "engine": described(),
        "bytes": str(made.manifest.bytes), "trained": "base by lora on data/bank (900 rows)",
        **tags,
    }  # fmt: skip
    registry.aliases["candidate"] = number
    return made.manifest.digest


def test_a_version_is_pulled_to_a_folder_and_for_the_server(
    registry: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = register(registry, 1, tmp_path / "trained")
    registry.aliases["champion"] = 1
    shutil.rmtree(tmp_path / "trained/1")
    with pytest.raises(ConfigError, match=r"give register.version"):
        pull.run(configured())
    pull.run(configured("register.version=champion", f"pull.to={tmp_path}/models/x"))
    assert (tmp_path / "models/x/model").read_text() == "v1"
    told = " ".join(capsys.readouterr().err.split())
    assert "python -m pipeline.serving --engine" in told
    config = configured("serve.version=champion")
    found = engine_of("champion", config)
    assert found.artifact.manifest.digest == digest
    assert found.version.title == "version 1 (candidate, champion)"
    place = config.artifacts / f".variants/build-{digest[:16]}"
    assert found.artifact.path == place.absolute()
    asked = len(registry.asked)
    shutil.rmtree(tmp_path / "trained/store")
    assert engine_of(1, config).artifact.path == place  # it is here now
    assert len(registry.asked) > asked


def test_a_pull_on_a_machine_with_the_server_alone_imports_no_heavy_library(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    register(registry, 1, tmp_path / "trained")
    code = (
        "import sys\n"
        "for name in 'torch nemo megatron mlflow transformers modelopt pandas peft'.split():\n"
        "    sys.modules[name] = None\n"
        "from pipeline.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["stage=pull", "register.name=bank", "register.version=candidate", "pull.to=here"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here/model").read_text() == "v1"


def test_what_cannot_be_pulled_says_why(registry: FakeRegistry, tmp_path: Path) -> None:
    config = configured()
    with pytest.raises(ArtifactError, match="no version of bank is registered yet"):
        engine_of("champion", config)
    register(registry, 1, tmp_path, engine=described("onnxruntime", "0.1"))
    register(registry, 2, tmp_path, engine=described("trtllm", "1.2", gpu="H100"))
    register(registry, 3, tmp_path, engine=described("elsewhere"))
    register(registry, 4, tmp_path, bundle="")
    register(registry, 5, tmp_path, bundle="0" * 64)
    with pytest.raises(
        ArtifactError, match=r"no version best: choose one of 1, 2.*candidate \(5\)"
    ):
        engine_of("best", config)
    instead = r"pull its checkpoint \(`stage=pull register.version=\d pull.artifact=merge"
    with pytest.raises(
        ArtifactError, match=rf"version 1 was built with onnxruntime 0.1.*{instead}"
    ):
        engine_of(1, config)
    with pytest.raises(ArtifactError, match=rf"version 2 was built with trtllm 1.2.*{instead}"):
        engine_of(2, config)
    with pytest.raises(ArtifactError, match="needs the engine elsewhere"):
        engine_of(3, config)
    with pytest.raises(ArtifactError, match=r"registered without register\.store"):
        engine_of(4, config)
    with pytest.raises(ArtifactError, match="has no 000000000000"):
        engine_of(5, config)
    assert not list(Path("artifacts").glob(".variants/build-*"))
    registry.status = 403
    with pytest.raises(PipelineError, match=r"refused \(403\): check MLFLOW_TRACKING_USERNAME"):
        engine_of(1, config)


def test_an_alias_that_moves_while_its_version_is_pulled(
    registry: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(registry, 1, tmp_path / "trained")
    register(registry, 2, tmp_path / "trained")
    registry.aliases["champion"] = 1
    config = configured()
    version = find_version("champion", config)
    assert moved_meanwhile("champion", version, config) is None
    registry.aliases["champion"] = 2
    told = moved_meanwhile("champion", version, config)
    assert told == "champion was moved to version 2 meanwhile: this is version 1, whole"
    assert moved_meanwhile(1, version, config) is None
    registry.status = 500
    assert moved_meanwhile("champion", version, config) is None
    pulling.tell_if_moved("champion", version, config)
    assert "moved" not in capsys.readouterr().err


def test_mlflows_own_artifact_store(registry: FakeRegistry, tmp_path: Path) -> None:
    made = make_artifact(tmp_path / "trained", "build", "engine", files={"model": b"x" * 3000})
    config = configured("register.store=mlflow")
    store = open_store("mlflow", config)
    assert isinstance(store, MlflowFiles)
    bundle = push({"build": made}, store)
    store.close()
    assert store.address == "mlflow-artifacts:/7"
    assert f"7/blobs/sha256/{bundle.blob.sha256}" in registry.files
    registry.versions[1] = {
        "digest.build": made.manifest.digest, "store": store.address,
        "bundle": bundle.blob.sha256,
    }  # fmt: skip
    found = engine_of(1, configured())
    assert found.artifact.manifest == made.manifest
    damaged = open_store("mlflow", config)
    honest = damaged.read
    damaged.read = lambda digest, begin=0: (part + b"!" for part in honest(digest, begin))  # type: ignore[method-assign]
    other = make_artifact(tmp_path / "other", "build", "engine", files={"model": b"y" * 3000})
    with pytest.raises(ArtifactError, match="differs from its digest"):
        push({"build": other}, damaged)
    damaged.close()
    registry_gone = open_store("mlflow-artifacts:/7", config)
    registry.files.clear()
    with pytest.raises(ArtifactError, match="has no"), registry_gone.errors():
        list(registry_gone.read("0" * 64))
    registry_gone.close()


def test_promote_and_roll_back_say_who_when_and_why(
    registry: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        register(registry, number, tmp_path)
    register(registry, 4, tmp_path, gate="failed", champion="it did not pass the gate (too bad)")

    def ask(stage, *words: str) -> str:
        stage.run(configured(*words))
        return " ".join(capsys.readouterr().err.split())

    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"give register.version"):
        ask(promote)
    told = ask(promote, "register.version=1", "register.reason=the first")
    assert told == "✓ version 1 of bank is champion (there was none), promoted by ada: the first"
    for number in (2, 3):
        ask(promote, f"register.version={number}")
    assert "is champion already" in ask(promote, "register.version=3")
    with pytest.raises(
        GateFailed, match=r"has not passed the gate \(it did not pass the gate \(too"
    ):
        ask(promote, "register.version=candidate")
    with pytest.raises(ConfigError, match="version 2 passed the gate"):
        ask(promote, "register.version=2", "register.overrule=why not")
    told = ask(promote, "register.version=4", "register.overrule=a demo tomorrow")
    assert told.endswith("gate overruled: a demo tomorrow")
    for expected in (3, 2, 1):
        ask(rollback, "register.reason=wrong answers")
        assert registry.aliases["champion"] == expected
    with pytest.raises(ArtifactError, match="no champion of bank before version 1 is recorded"):
        ask(rollback)
    registry.tags["change.broken"] = "{"
    versions.run(configured())
    printed = capsys.readouterr().err  # wide, since it is no terminal
    table = " ".join(printed.split())
    assert "rolled back by ada: wrong answers" in table
    assert "gate overruled: a demo tomorrow" in table
    assert "promoted by ada: the first" in table
    assert "base by lora on data/bank" in table
    assert "secret" not in json.dumps(registry.tags) + table
    assert (
        "\n      1  champion   base by lora on data/bank (900 rows)  90.0% exact match  " in printed
    )


def test_a_version_that_saw_what_is_to_be_forgotten(registry: FakeRegistry, tmp_path: Path) -> None:
    said = "trained on a conversation that is to be forgotten"
    register(registry, 1, tmp_path, forgotten=f"2026-11-30T12:00:00+00:00: {said}")
    with pytest.raises(GateFailed, match=rf"version 1 \(candidate\) of bank was {said}: retrain"):
        promote.run(configured("register.version=1"))
    promote.run(configured("register.version=1", "register.overrule=until tomorrow"))
    assert registry.aliases["champion"] == 1
    assert said in version_table.row(find_version("champion", configured()))[2]


def test_the_table_of_versions(registry: FakeRegistry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no version of bank is registered yet"):
        versions.run(configured())
    register(
        registry, 3, tmp_path, engine=described("trtllm", "1.2", gpu="H100"), gate="failed",
        bytes=str(3 * 2**20), store="s3://models/bank",
        **{"runs.host-a:8000": "1000", "runs.host-b:8000": "50", "runs.host-c": "x"},
    )  # fmt: skip
    registry.aliases["champion"] = 3
    version = find_version("champion", configured())
    cells = version_table.row(version, now=1000 + 60)
    assert cells == (
        "3", "candidate, champion", "base by lora on data/bank (900 rows)",
        "90.0% exact match (gate failed)",
        "trtllm int8 for H100", "3.0", "s3://models/bank", "host-a:8000",
    )  # fmt: skip
    bare = version_table.row(type(version)("bank", 1, (), {}))
    assert bare == ("1", "", "", "", "", "", "where it was built", "")


def test_rollbacks_go_back_by_one_each() -> None:
    def change(version: int, before: int | None, kind="promoted") -> Change:
        return Change(0, version, before, kind, "ada", "")

    changes = [change(1, None, "registered"), change(2, 1), change(3, 2)]
    assert champion_before(changes, 3) == 2
    changes.append(change(2, 3, "rolled back"))
    assert champion_before(changes, 2) == 1
    assert champion_before(changes, 1) is None
    assert champion_before([], 5) is None
