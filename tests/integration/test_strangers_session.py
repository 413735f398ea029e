"""A stranger's afternoon: a Qwen3 that transformers 5 saved, from a hub, to a server.

LoRA on two layers for two epochs, then DPO on the result, by the commands that users type.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from pipeline.__main__ import main
from pipeline.core.artifact import open_artifact
from pipeline.models.sources import fetching
from pipeline.orchestration import project
from pipeline.serving.server_process import running_server
from tests.integration.family_case import MODELS
from tests.integration.hub_server import HubServer, point_at
from tests.unit.model_folders import edit

WORDS = ("card", "loan", "wire", "fee", "limit", "branch", "rate", "form")
ASKED = [(f"What is a {a} {b}?", f"It is a {b} of the {a}.") for a in WORDS for b in WORDS]
ANSWERS = [{"prompt": question, "completion": answer} for question, answer in ASKED]
PAIRS = [
    {"prompt": question, "chosen": answer, "rejected": f"I cannot say, {question.lower()}"}
    for question, answer in ASKED
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    fetching._place.cache_clear()
    with HubServer() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        yield server
    fetching._place.cache_clear()


def test_a_strangers_model_is_tuned_preferred_and_served(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    published = MODELS["qwen3"](tmp_path / "published")
    edit("config.json", rope_theta=..., rope_scaling=..., torch_dtype=..., dtype="float32",
         rope_parameters={"rope_type": "default", "rope_theta": 1e6})(published)  # fmt: skip
    edit("tokenizer_config.json", tokenizer_class="TokenizersBackend",
         extra_special_tokens=["<|extra|>"])(published)  # fmt: skip
    hub.add("org/tiny-qwen3", published)
    project.init(tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    Path("rows").mkdir()
    for name, rows in (
        ("answers", ANSWERS[:56]), ("pairs", PAIRS[:56]), ("test", ANSWERS[56:])
    ):  # fmt: skip
        Path(f"rows/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(stages: str, *given: str) -> str:
        for stage in stages.split():
            code = main([f"stage={stage}", "tracking.enabled=false", *given])
            said = capfd.readouterr().err
            assert code == 0, f"stage={stage}: {said}"
        return said

    def manifest(folder: str) -> dict:
        return dict(vars(open_artifact(Path(folder)).manifest))

    data = ["data=files", "data.folder=rows", "data.test=[test.jsonl]", "prepare.max_length=128"]
    model = ["model=local", "model.name=tiny", "model.path=hf://org/tiny-qwen3"]
    steps = ["finetune.global_batch_size=8", "finetune.learning_rate=2e-2"]
    run("prepare", *model, *data, "data.train=[answers.jsonl]")
    run("import", *model)
    chosen = "finetune.adapter.target_modules=[q_proj,down_proj]"
    said = run("finetune", *model, *steps, "finetune.epochs=2", chosen)
    tuned = manifest("artifacts/finetune")
    assert "epoch" in said
    assert tuned["metrics"]["epochs"] == pytest.approx(2, abs=0.2)
    curve = json.loads(Path("artifacts/finetune/curve.json").read_text())
    assert tuned["metrics"]["train_loss"] < curve[0]["loss"] - 0.1
    run("merge", *model)
    adapter = json.loads(Path("artifacts/merge/adapter/adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["down_proj", "q_proj"]

    again = ["artifacts=preferred"]
    model = ["model=local", "model.name=tiny", "model.path=artifacts/merge"]
    dpo = ["finetune.objective=dpo"]
    run("prepare", *again, *model, *data, *dpo, "data.train=[pairs.jsonl]")
    run("import", *again, *model)
    run("finetune", *again, *model, *dpo, *steps, "finetune.epochs=3")
    preferred = manifest("preferred/finetune")["metrics"]
    assert preferred["reward_accuracy"] > 0.9
    run("merge", *again, *model)
    run("quantize export", *again, *model, "quantize.format=fp8", "quantize.compare=[]")
    run("build", *again, *model, "engine=hf", "engine.max_input_len=64", "engine.max_seq_len=96")
    with running_server(
        Path("preferred/build"), model="tiny", log=tmp_path / "server.log"
    ) as server:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": ASKED[60][0]}], max_tokens=16
        )
    assert answer.usage
    assert answer.usage.completion_tokens > 0
