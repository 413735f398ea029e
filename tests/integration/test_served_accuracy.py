"""What is registered is what clients get: the same questions, asked by OpenAI's own client.

The model is random, and ends an answer at every third token, so that answers are short and differ.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from safetensors.numpy import save_file

from pipeline.config.schema import Config, load
from pipeline.core.artifact import Artifact
from pipeline.core.errors import ArtifactError
from pipeline.data.dataset import Row, read_split, write_split
from pipeline.engines.registered import Champion
from pipeline.evaluation.overlap import exact_match
from pipeline.evaluation.served import read_scores
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.serving.server_process import RunningServer, running_server
from pipeline.stages import benchmark, build, register
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import make_model_folder

MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 4,
}  # fmt: skip
SETTINGS = [
    "engine=onnxruntime", "engine.precision=fp32", "engine.max_input_len=64",
    "engine.max_seq_len=96", "evaluate.max_new_tokens=24", "evaluate.gate.served.margin=1",
    "evaluate.gate.reached=null", "benchmark.concurrency=[4]",
    "benchmark.requests=4", "benchmark.max_tokens=8",
]  # fmt: skip
ASKED = [f"What does it cost to {w} a {v}?" for w in ("wire", "lend", "save", "pay") for v in
         ("card", "loan", "fee", "limit", "branch")]  # fmt: skip
LONG = "Tell me more about " + "the card and the loan and " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def merged(folder: Path) -> Artifact:
    return random_model(folder)


def random_model(folder: Path) -> Artifact:
    """The artifact of `merge` in a folder of artifacts."""
    model = make_model_folder(folder / "merge", "demo")
    vocabulary = Chat.load(model).vocab_size
    (model / "config.json").write_text(json.dumps(MODEL | {"vocab_size": vocabulary}))
    ends = list(range(4, vocabulary, 3))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    random = np.random.default_rng(3)
    tensors = {
        name: random.normal(1 if "norm" in name else 0, 0.2, shape).astype(np.float32)
        for name, shape in read_shape(model).tensors()
    }
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return make_artifact(folder, "merge", "hf_checkpoint")


def built(
    folder: Path, merged: Artifact, *settings: str, engine: str = "onnxruntime"
) -> tuple[Config, Artifact]:
    """The settings, and the engine that they build of a merged model."""
    qnemo = {"dtype": "bfloat16", "mapping": {"tp_size": 1}}
    exported = make_artifact(
        folder, "export", "exported", files={"qnemo/config.json": json.dumps(qnemo)}
    )
    common = [f"engine={engine}" if word.startswith("engine=") else word for word in SETTINGS]
    config = load(compose([*common, f"artifacts={folder}", *settings]))
    out = folder / "build"
    out.mkdir()
    validation = folder / "validation"
    validation.mkdir()
    draw = np.random.default_rng(5)
    ids = [draw.integers(5, 300, 40).tolist() for _ in range(8)]
    write_split(validation, "validation", [Row([], i, [0] * 20 + [1] * 20, "") for i in ids])
    dataset = make_artifact(folder, "prepare", "dataset", name="validation", files={"x": ""})
    outcome = build.run(config, {"prepare": dataset, "merge": merged, "export": exported}, out)
    return config, make_artifact(folder, "build", outcome.kind, proof=outcome.proof, files={})


def ask(server: RunningServer, question: str, **fields: Any) -> tuple[str, bool]:
    """The answer to a client that sets nothing else, and whether it ended by itself."""
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    choice = client.chat.completions.create(
        model="bank", messages=[{"role": "user", "content": question}], **fields
    ).choices[0]
    return choice.message.content or "", choice.finish_reason == "stop"


def test_served_accuracy_is_registered_accuracy(
    folder: Path, merged: Artifact, tmp_path: Path
) -> None:
    config, engine = built(folder, merged)
    chat = Chat.load(merged.path)
    with running_server(engine.path, model="bank", log=tmp_path / "log") as server:
        answers = [ask(server, question) for question in ASKED]
        with pytest.raises(BadRequestError, match="maximum prompt length"):
            ask(server, LONG)
    # Half of the answers are right; one question is too long for the engine.
    expected = [text if i % 2 else f"not {text}" for i, (text, _) in enumerate(answers)]
    rows = [row(chat, *pair) for pair in zip([*ASKED, LONG], [*expected, "x"], strict=True)]
    inputs = make_inputs(tmp_path, rows, engine)
    out = tmp_path / "benchmark"
    out.mkdir()
    outcome = benchmark.run(config, inputs, out)

    right = [
        ended and exact_match(text, wanted)
        for (text, ended), wanted in zip(answers, expected, strict=True)
    ]
    assert 2 < sum(right) <= len(ASKED) / 2
    assert outcome.metrics["exact_match/served"] == sum(right) / (len(ASKED) + 1)
    assert list(read_scores(out, "exact_match").values()) == [*map(float, right), 0.0]
    served = json.loads((out / "report.json").read_text())["served"]
    assert served["sampling"] == {"temperature": 0.0}
    assert (served["runtime"], served["precision"]) == ("onnxruntime", "fp32")
    assert (served["questions"], served["refused"]) == (len(ASKED) + 1, 1)
    assert served["cut"] == sum(not ended for _, ended in answers)
    assert outcome.failure is None
    assert outcome.metrics["same_answer_at_every_load"] == 1
    assert outcome.metrics["output_tokens_per_second/at_4"] > 0
    assert outcome.metrics["peak_memory_mib"] > 50
    assert (out / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "| 4 |" in (out / "report.md").read_text()

    # As a champion that has not answered these questions yet, it is asked again.
    settings = {"seed": config.seed, "benchmark": {"concurrency": [4]}}
    settings |= {"evaluate": config.evaluate.model_dump(mode="json")}
    inputs["benchmark"] = make_artifact(
        tmp_path, "benchmark", "benchmark", name="measured", config=settings
    )
    champion = Champion(1, engine.manifest.digest, {"exact_match": {"another question": 1.0}})
    rules = register.champion_rules(config, inputs)
    again = register._ask(champion, inputs, rules, config, out)
    assert again == {"exact_match": read_scores(out, "exact_match")}


def test_an_engine_that_samples_is_measured_as_it_samples(
    folder: Path, merged: Artifact, tmp_path: Path
) -> None:
    """At a high temperature hardly an answer is the likeliest one, and a gate says so."""
    config, engine = built(
        tmp_path, merged, "engine.sampling.temperature=2", "evaluate.gate.served.margin=0.03"
    )
    chat = Chat.load(merged.path)
    written = json.loads((engine.path / "generation_config.json").read_text())
    assert (written["temperature"], written["do_sample"]) == (2.0, True)
    assert written["eos_token_id"][0] == 4
    with running_server(engine.path, model="bank", log=tmp_path / "log") as server:
        greedy = [ask(server, question, temperature=0)[0] for question in ASKED]
    rows = [row(chat, *pair) for pair in zip(ASKED, greedy, strict=True)]
    inputs = make_inputs(tmp_path, rows, engine)
    out = tmp_path / "benchmark"
    out.mkdir()
    outcome = benchmark.run(config, inputs, out)
    assert outcome.metrics["exact_match/served"] < 0.8
    assert outcome.failure is not None
    assert "served engine (onnxruntime fp32, temperature 2) is" in outcome.failure


def test_figures_of_another_dataset_are_refused(folder: Path, tmp_path: Path) -> None:
    """Before a server starts."""
    engine = make_artifact(tmp_path, "build", "engine")
    inputs = make_inputs(tmp_path, [Row([], [1], [1], "f:1", [1], "x")], engine)
    (tmp_path / "other").mkdir()
    others = [Row([], [1], [1], "f:1", [1], "y")]
    inputs["prepare"] = make_inputs(tmp_path / "other", others, engine)["prepare"]
    config = load(compose([*SETTINGS, f"artifacts={tmp_path}"]))
    with pytest.raises(ArtifactError, match="was made from another dataset"):
        benchmark.run(config, inputs, tmp_path)


def row(chat: Chat, question: str, answer: str) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row(turns, [1], [1], "test.jsonl:1", chat.prompt(turns[:-1]), answer)


def make_inputs(folder: Path, rows: list[Row], engine: Artifact) -> dict[str, Artifact]:
    """A dataset, and an evaluation in which the tuned model answered every question right."""
    (folder / "prepare").mkdir()
    write_split(folder / "prepare", "test", rows)
    figures = {"base": {"exact_match": 0.0}, "tuned": {"exact_match": 1.0}}
    records = [
        {"answers": {"base": "", "tuned": row.answer}, "cut": [], "metrics": figures}
        for row in rows
    ]
    files = {
        "report.json": json.dumps({"method": "adapter"}),
        "predictions.jsonl": "\n".join(map(json.dumps, records)),
    }
    assert read_split(folder / "prepare", "test") == rows
    dataset = make_artifact(folder, "prepare", "dataset", files={"x": ""})
    read = {"prepare": dataset}
    return {
        "prepare": dataset,
        "evaluate": make_artifact(folder, "evaluate", "report", files=files, inputs=read),
        "build": engine,
    }
