"""Run third-party clients against a server with the demo's engine; see README.md.

python -m bench.clients.run [ENGINE_FOLDER]
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.hardware import inspect_machine
from pipeline.core.paths import ROOT
from pipeline.serving.server_process import running_server

HERE = Path(__file__).parent
RESULTS = ROOT / "bench/results/clients.json"
PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)
AIPERF = os.environ.get("AIPERF", "aiperf")
MODEL = "demo"
QUESTIONS = 40  # of the test split, for lm-evaluation-harness


def scripts(url: str) -> Iterator[tuple[str, list[str]]]:
    yield "curl", ["sh", str(HERE / "curl.sh"), url, MODEL]
    yield "openai (Python)", [PYTHON, str(HERE / "openai_python.py"), url, MODEL]
    yield "openai (Node)", ["node", str(HERE / "openai_node.mjs"), url, MODEL]
    yield "openai (Python, responses)", [PYTHON, str(HERE / "openai_responses.py"), url, MODEL]
    yield "anthropic (Python)", [PYTHON, str(HERE / "anthropic_messages.py"), url, MODEL]
    yield "litellm", [PYTHON, str(HERE / "litellm_chat.py"), url, MODEL]
    yield "instructor", [PYTHON, str(HERE / "instructor_modes.py"), url, MODEL]
    yield "langchain-openai", [PYTHON, str(HERE / "langchain_chat.py"), url, MODEL]


def ask_script(command: list[str]) -> dict[str, Any]:
    """The last line of a script's output, which has the client's version."""
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    return {"version": json.loads(done.stdout.splitlines()[-1])["version"]}


def ask_lm_eval(url: str, engine: Path, kind: str, path: str, task: str) -> dict[str, Any]:
    arguments = f"model={MODEL},base_url={url}/{path},num_concurrent=4,tokenizer={engine}"
    with tempfile.TemporaryDirectory() as out:
        command = [PYTHON, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments]
        command += ["--tasks", task, "--include_path", str(HERE / "lm_eval_tasks")]
        command += ["--apply_chat_template", "--limit", str(QUESTIONS), "--output_path", out]
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (file,) = Path(out).rglob("results_*.json")
        report = json.loads(file.read_text())
    scores = {
        name.split(",")[0]: value
        for name, value in report["results"][task].items()
        if isinstance(value, float) and "stderr" not in name
    }
    return {"version": report["lm_eval_version"], "questions": QUESTIONS, **scores}


def ask_aiperf(url: str, engine: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        command = [AIPERF, "profile", "--model", MODEL, "--url", url.removesuffix("/v1")]
        command += ["--endpoint-type", "chat", "--streaming", "--tokenizer", str(engine)]
        command += ["--isl", "64", "--osl", "32", "--extra-inputs", "ignore_eos:true"]
        command += ["--concurrency", "4", "--request-count", "64", "--use-server-token-count"]
        command += ["--artifact-dir", out, "--ui", "none", "--no-gpu-telemetry"]
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        report = json.loads(next(Path(out).rglob("profile_export_aiperf.json")).read_text())
    version = subprocess.run([AIPERF, "--version"], capture_output=True, text=True, check=True)
    return {
        "version": version.stdout.split()[-1],
        "requests": report["request_count"]["avg"],
        "errors": len(report.get("error_summary") or []),
    }


def main() -> None:
    engine = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "artifacts/build").resolve()
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(engine, model=MODEL, log=Path(folder) / "server.log") as server,
    ):
        url = server.url
        asked: dict[str, Any] = {
            name: lambda command=command: ask_script(command) for name, command in scripts(url)
        }
        asked |= {
            "lm-evaluation-harness (local-completions)": lambda: ask_lm_eval(
                *(url, engine, "local-completions", "completions", "bank_choice")
            ),
            "lm-evaluation-harness (local-chat-completions)": lambda: ask_lm_eval(
                *(url, engine, "local-chat-completions", "chat/completions", "bank_answer")
            ),
        }
        if shutil.which(AIPERF):
            asked["aiperf"] = lambda: ask_aiperf(url, engine)
        for name, ask in asked.items():
            try:
                found[name] = {"passed": True, **ask()}
            except subprocess.CalledProcessError as error:
                print(error.stdout[-2000:], error.stderr[-4000:], sep="\n", file=sys.stderr)
                found[name] = {"passed": False}
            print(name, found[name], file=sys.stderr)
    machine = inspect_machine()
    report = {"cores": machine.cores, "model": "the bundled demo, int8, CPU", "clients": found}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(not all(client["passed"] for client in found.values()))


if __name__ == "__main__":
    main()
