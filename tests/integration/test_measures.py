"""A stranger's measures: a judge on a local endpoint, a function of his own, slices, and a gate on
two metrics and a slice; on the simulated formats, and on the served engine.
"""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.data.dataset import Row, read_split, write_split
from pipeline.evaluation.predictions import read_predictions
from pipeline.stages import evaluate
from tests.integration.quantization_case import configure, make_inputs
from tests.made_artifacts import make_artifact
from tests.openai_server import OpenAIServer

OWN = '''
def short(answer):
    """share of the answers of at most 60 letters"""
    return len(answer) <= 60
short.format = ".0%"

def raises(answer, tags):
    raise ValueError(f"no {tags[0]}")
'''
METRICS = "[judge_score,judge_wins,token_f1,general_perplexity,FILE:short,FILE:raises]"


def says(body: dict[str, Any]) -> str:
    """A judge that gives 7, and prefers whatever stands first."""
    prompt = body["messages"][-1]["content"]
    return "It is first. [[A]]" if "<answer A>" in prompt else "Right. Score: [[7]]"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A tiny model that is its own base, its "format" none, and tagged questions."""
    folder = tmp_path_factory.mktemp("measures")
    made = make_inputs(folder / "artifacts")
    dataset = made["prepare"].path
    rows = [
        replace(row, tags=["card" if i % 3 else "loan"], language="en" if i % 2 else "de")
        for i, row in enumerate(read_split(dataset, "test"))
    ]
    made["prepare"] = _with_rows(made["prepare"], rows, folder)
    model = made["merge"].path
    files = {f"none/{f.name}": f.read_bytes() for f in model.iterdir() if f.is_file()}
    made["quantize"] = make_artifact(
        folder, "quantize", "quantized", files=files, config={"quantize": {"format": "none"}}
    )
    return made


def _with_rows(dataset: Artifact, rows: list[Row], folder: Path) -> Artifact:
    """The same dataset with another test split."""
    place = folder / "tagged"
    place.mkdir()
    files = {
        f.relative_to(dataset.path).as_posix(): f.read_bytes()
        for f in dataset.path.rglob("*")
        if f.is_file() and f.name != "manifest.json"
    }
    files["test.parquet"] = write_split(place, "test", rows).read_bytes()
    return make_artifact(
        folder, "prepare", "dataset", name="dataset", files=files,
        config=dataset.manifest.config, proof=dataset.manifest.proof,
    )  # fmt: skip


def settings(inputs: dict[str, Artifact], folder: Path, url: str, *given: str) -> Config:
    own = folder / "measures.py"
    own.write_text(OWN)
    text = folder / "general.txt"
    text.write_text("Call the branch about the card and the loan. " * 40)
    return configure(
        "model=local", "model.name=tiny", f"model.path={inputs['merge'].path}",
        f"evaluate.metrics={METRICS.replace('FILE', str(own))}",
        f"evaluate.general_text={text}", f"evaluate.judge.endpoint.base_url={url}",
        "evaluate.gate.judged={metric:judge_score,min:0.6}",
        "evaluate.gate.cards={metric:short,tag:card,min:0.5,by:interval}",
        "evaluate.gate.german={metric:token_f1,language:de,against:base,by:test}", *given,
    )  # fmt: skip


def run(
    inputs: dict[str, Artifact], out: Path, *given: str, folder: Path
) -> tuple[Outcome, dict[str, Any]]:
    out.mkdir()
    with OpenAIServer(says) as server:
        config = settings(inputs, folder, server.url, *given)
        outcome = evaluate.run(config, inputs, out)
    return outcome, json.loads((out / "report.json").read_text())


def test_a_strangers_measures(
    inputs: dict[str, Artifact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome, report = run(inputs, tmp_path / "out", folder=tmp_path)
    assert outcome.failure is None
    tuned = report["models"]["tuned"]
    assert tuned["judge_score"]["value"] == pytest.approx(6 / 9)
    assert tuned["judge_wins"]["value"] == 0.5, "its own base, and a judge that likes the first"
    assert tuned["general_perplexity"]["value"] > 1
    assert 0 <= tuned["short"]["value"] <= 1
    assert re.fullmatch(
        r".*measures\.py:raises raised ValueError: no \w+ at .*", report["failures"]["raises"]
    )
    said = capfd.readouterr().err
    assert len([line for line in said.splitlines() if "raises is not measured" in line]) == 3
    names = {(part["kind"], part["name"]) for part in report["slices"]}
    assert {("tag", "card"), ("tag", "loan"), ("language", "de")} <= names
    decided = {c["name"]: c["passed"] for c in report["gate"]["conditions"]}
    assert decided == dict.fromkeys(("base", "format", "judged", "cards", "german"), True)
    assert report["judge"]["asked"] == report["questions"] * 3
    assert (tmp_path / "out" / "judge.jsonl").is_file()
    assert "judge.jsonl" in outcome.measured
    assert report["calibration"]["bins"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tag <b>card</b>" in page
    # What later stages compare with.
    rows = read_split(inputs["prepare"].path, "test")
    found = read_predictions(tmp_path / "out", rows)
    assert set(found) == {"base", "tuned", "none"}
    assert list(found["tuned"].samples["judge_score"].values) == pytest.approx([6 / 9] * len(rows))
    assert "general_perplexity" not in found["tuned"].samples


def test_a_gate_that_is_missed_says_which_condition_and_the_others_are_decided(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    outcome, report = run(
        inputs, tmp_path / "out", "evaluate.gate.judged.min=0.9",
        "evaluate.gate.cards={metric:raises,min:0}",
        "evaluate.gate.german.language=fr", folder=tmp_path,
    )  # fmt: skip
    failure = str(outcome.failure)
    assert "evaluate.gate.judged: the judge's score of the tuned model is 66.7% on" in failure
    assert (
        "evaluate.gate.cards: the raises of the tuned model on tag card was not measured:"
        in failure
    )
    assert "no test question has the language fr: choose from de, en" in failure
    assert not report["gate"]["passed"]


def test_the_embedder_of_a_local_folder(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """A random sentence-transformers model: the same text is the same, another one is not."""
    from pipeline.evaluation.embedding import similarity
    from tests.unit.evaluation.cases import answers

    folder = tmp_path / "embedder"
    embedder(folder)
    same, other = similarity(folder)(answers(["call a branch", "card"], ["call a branch", "loan"]))
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.9999
    assert not math.isnan(other)


def embedder(folder: Path) -> None:
    """Write a tiny random BERT as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as token_models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "call", "a", "branch", "card", "loan"]
    tokenizer = Tokenizer(token_models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=16)  # fmt: skip
    plain = folder.with_name("bert")
    BertModel(config).save_pretrained(plain)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(plain)
    transformer = models.Transformer(str(plain))
    SentenceTransformer(modules=[transformer, models.Pooling(16)], device="cpu").save_pretrained(
        str(folder)
    )
