"""synthesize as a user runs it: killed and resumed; and with a real model on our own server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.core.errors import DataError
from pipeline.core.paths import ROOT
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.serving.server_process import running_server
from pipeline.stages import synthesize
from tests.integration import test_served_accuracy
from tests.made_artifacts import make_artifact
from tests.openai_server import OpenAIServer, Reply
from tests.unit.model_folders import make_model_folder
from tests.unit.stages.test_synthesize import configure, good, made

THINGS = 24


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(THINGS):
        text = f"A thing{'abcdefghijklmnopqrstuvwxyz'[i]} costs {100 + i} dollars in every branch."
        (folder / f"{i:02}.md").write_text(f"# Fees\n\n{text}\n")
    return folder


def test_a_killed_run_resumes_without_asking_twice(documents: Path, tmp_path: Path) -> None:
    slow = True

    def answer(body: dict[str, Any]) -> str | Reply:
        if slow and len(server.bodies) > 8:
            return Reply(hang=120)  # in flight when the run is killed
        return good(body)

    with OpenAIServer(answer) as server:
        command = [
            sys.executable, "-m", "pipeline", "stage=synthesize", f"synthesize.folder={documents}",
            "synthesize.documents=[*.md]", f"synthesize.to={tmp_path / 'rows'}",
            f"synthesize.endpoint.base_url={server.url}", "synthesize.endpoint.concurrency=4",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        waited = time.monotonic() + 300
        while len(server.bodies) < 12 and time.monotonic() < waited and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
        before = len(server.bodies)
        assert before == 12  # 8 answers, 4 in flight
        assert not (tmp_path / "rows" / "rows.jsonl").exists()
        slow = False
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert len(server.bodies) == before + THINGS - 8
    rows = (tmp_path / "rows" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(row)["source"].split("/")[-1] for row in rows] == [
        f"{i:02}.md:3" for i in range(THINGS)
    ]
    # Nobody knows what the four in flight cost, so they count in full.
    used = json.loads((tmp_path / "rows" / "manifest.json").read_text())["used"]["tokens"]
    assert used > 4 * 1024


def test_a_real_model_on_our_own_server(documents: Path, tmp_path: Path) -> None:
    """A random model: its answers are held to the schema, and none of its pairs is kept."""
    model = make_model_folder(tmp_path / "merge", "demo")
    config = test_served_accuracy.MODEL | {
        "vocab_size": Chat.load(model).vocab_size, "max_position_embeddings": 1024,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(3)
    tensors = {
        name: draw.normal(1 if "norm" in name else 0, 0.2, shape).astype(np.float32)
        for name, shape in read_shape(model).tensors()
    }
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    merged = make_artifact(tmp_path, "merge", "hf_checkpoint")
    sizes = ("engine.max_input_len=512", "engine.max_seq_len=768")
    _, engine = test_served_accuracy.built(tmp_path, merged, *sizes)
    own = tmp_path / "prompt.txt"
    own.write_text("Ask {questions} questions, as JSON: {text}")
    for file in sorted(documents.iterdir())[4:]:
        file.unlink()
    with running_server(engine.path, model="bank", log=tmp_path / "log") as server:
        settings = configure(
            compose([]), documents, server.url, prompt=own, endpoint={"max_tokens": 96}
        )
        with pytest.raises(DataError, match="no pair could be kept of 4 chunks"):
            synthesize.run(settings)
    rows, manifest = made(settings)
    assert rows == []
    assert manifest["counts"]["answered"] == 4
    assert manifest["models"] == ["bank"]
    assert 4 * 20 < manifest["used"]["tokens"] <= 4 * (512 + 96)
    entries = [
        json.loads(line)
        for line in (settings.synthesize.to / "answers/ledger.jsonl").read_text().splitlines()
    ]
    answers = [entry["answer"]["text"] for entry in entries if "answered" in entry]
    assert len(answers) == 4
    assert all(text.lstrip().startswith("{") for text in answers)
