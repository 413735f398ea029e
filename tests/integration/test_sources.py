"""A model of a hub, from its address to an imported checkpoint, by the commands that users type."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from pipeline.__main__ import main
from pipeline.core.artifact import open_artifact
from pipeline.core.paths import ROOT
from pipeline.models.sources import fetching
from pipeline.orchestration import project
from tests.integration.hub_server import HubServer, point_at
from tests.unit.model_folders import edit, make_model_folder

ROWS = [{"messages": [{"role": "user", "content": f"What is {a} and {b}?"},
                      {"role": "assistant", "content": f"It is {a + b}."}]}
        for a in range(9) for b in range(9)]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    fetching._place.cache_clear()
    with HubServer() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        yield server
    fetching._place.cache_clear()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A tiny Qwen2 in the form of transformers 5, with leftovers of its training."""
    folder = make_model_folder(tmp_path / "published", "chatml")
    config = transformers.Qwen2Config(
        vocab_size=448, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    edit("config.json", rope_theta=..., rope_scaling=..., torch_dtype=...,
         rope_parameters={"rope_type": "default", "rope_theta": 1e6})(folder)  # fmt: skip
    edit("tokenizer_config.json", tokenizer_class="TokenizersBackend",
         extra_special_tokens=["<|extra|>"])(folder)  # fmt: skip
    for name in ("pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def write_rows(folder: Path) -> None:
    folder.mkdir()
    for name, rows in (("train", ROWS[:70]), ("test", ROWS[70:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_model_of_the_hub_from_its_address_to_a_checkpoint(
    hub: HubServer, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    commit = hub.add("org/tiny", published)
    project.init(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    write_rows(Path("rows"))
    rows = hub.add("datasets/org/rows", Path("rows").absolute())
    words = ["data=files", "data.folder=hf://datasets/org/rows", "data.train=[tr*.jsonl]",
             "data.test=[test.jsonl]", "tracking.enabled=false", "model.name=tiny"]  # fmt: skip
    address = "model.path=hf://org/tiny"

    def run(*given: str) -> str:
        code = main([*given])
        said = capfd.readouterr().err
        assert code == 0, said
        return said

    assert main(["stage=prepare", *words, "model.path=org/tiny"]) == 3
    said = capfd.readouterr().err
    assert "org/tiny does not exist" in said
    assert "for the model of that name on the hub type model.path=hf://org/tiny" in said
    run("stage=plan", "model=local", *words, address)
    assert set(hub.files_asked_for()) - {"train.jsonl", "test.jsonl"} == {"config.json"}
    run("stage=inspect", *words, address)
    assert {"train.jsonl", "test.jsonl", "tokenizer.json"} < {*hub.files_asked_for()}
    run("stage=prepare", *words, address)
    found = open_artifact(Path("artifacts/prepare")).manifest.proof["source"]
    assert (found["source"], found["revision"]) == ("hf://datasets/org/rows", rows)
    run("stage=import", *words[4:], address)
    manifest = open_artifact(Path("artifacts/import")).manifest
    found = manifest.proof["source"]
    assert (found["source"], found["revision"]) == ("hf://org/tiny", commit)
    assert len(found["digest"]) == 64
    config = json.loads(Path("artifacts/import/hf/config.json").read_text())
    assert config["rope_theta"] == 1e6
    assert "rope_parameters" not in config

    # The same model at another place: nothing runs again, and a later stage takes both.
    copy = tmp_path / "copied"
    shutil.copytree(manifest.config["model"]["path"], copy)
    assert "up to date" in run("stage=prepare", *words, f"model.path={copy}")
    assert "up to date" in run("stage=import", *words[4:], f"model.path={copy}")
    edit("generation_config.json", temperature=0.5)(copy)
    assert "up to date" not in run("stage=prepare", *words, f"model.path={copy}")


def test_dvc_takes_a_source_or_refuses_it_before_any_stage(
    hub: HubServer, published: Path, tmp_path: Path
) -> None:
    commit, shop = hub.add("org/tiny", published), tmp_path / "shop"
    shop.mkdir()
    subprocess.run(["git", "init", "-q", shop], check=True)
    project.init(shop)
    config = shop / ".dvc" / "config"
    if "config_module" not in config.read_text():
        config.write_text(f"{config.read_text().rstrip()}\n    config_dir = {ROOT / 'conf'}\n")
    write_rows(shop / "rows")
    git = ["git", "-C", shop, "-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "shop"], check=True)
    environment = {
        **os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e@example.com",
        "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e@example.com",
    }  # fmt: skip

    def experiment(model: str) -> subprocess.CompletedProcess[str]:
        words = ["model=local", "model.name=tiny", f"model.path={model}", "data=files",
                 "data.folder=rows", "data.train=[train.jsonl]", "data.test=[test.jsonl]",
                 "tracking.enabled=false"]  # fmt: skip
        command = [sys.executable, "-m", "dvc", "exp", "run", "prepare"]
        for word in words:
            command += ["-S", word]
        return subprocess.run(
            command, cwd=shop, env=environment, text=True, capture_output=True, timeout=300
        )

    done = experiment("hf://org/none@main")
    assert done.returncode != 0
    assert "hf://org/none@main is not on the hub" in done.stderr
    assert not (shop / "artifacts" / "prepare").exists()
    done = experiment("hf://org/tiny@main")
    assert done.returncode == 0, done.stderr
    manifest = open_artifact(shop / "artifacts" / "prepare").manifest
    assert Path(manifest.config["model"]["path"]).name == commit
    model = json.loads((shop / "artifacts" / "versions" / "model.json").read_text())
    assert model == {"source": "hf://org/tiny@main", "revision": commit}
