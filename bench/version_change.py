"""A server that follows champion changes its version under load: what is lost, how long it takes,
and how much memory it needs.

    python -m bench.version_change --output bench/results/version_change.json [--layers 12]

The model is a Llama with random weights, in float32, served by ONNX Runtime. Its two versions
differ in one small file, so each brings weights of its own. Clients ask all the time, each one
request after another. Champion moves from one version to the other and back; the server looks at it
every second. The registry is a small HTTP server in this process that answers as MLflow does. The
files come from a folder.

Memory is what the server's processes have for themselves, and their share of what they have in
common (PSS), summed. A change may have the weights of two versions in memory, and no more; a second
process of the engine has a Python of its own besides.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

from bench.origin import origin, parser_of
from pipeline.config.defaults import default_config
from pipeline.core.artifact import Artifact
from pipeline.core.paths import ROOT
from pipeline.data.dataset import Row, write_split
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.transfer import push
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.serving.address import listen
from pipeline.serving.versions import VERSION_HEADER
from pipeline.stages import build
from tests.made_artifacts import make_artifact
from tests.mlflow_registry import FakeRegistry, mlflow_registry
from tests.unit.model_folders import make_model_folder

MIB = 2**20
QUIET_SECONDS = 5.0  # before the first change, and after each
ASKED = {
    "model": "bank", "max_tokens": 8, "temperature": 0,
    "messages": [{"role": "user", "content": "What does it cost to wire?"}],
}  # fmt: skip
QNEMO = {"dtype": "bfloat16", "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}


@dataclass(frozen=True)
class Request:
    """begin, seconds: by time.monotonic(). version: that answered; "" if the request was lost."""

    begin: float
    seconds: float
    version: str


@dataclass(frozen=True)
class Change:
    """seconds: from the move of champion to the first answer of the new version. peak_mib: of the
    server, until the old version was gone."""

    to: int
    seconds: float
    peak_mib: float


def make_engine(folder: Path, layers: int, width: int) -> Path:
    """An engine of a random Llama in float32."""
    model = make_model_folder(folder / "merge", "demo")
    rows = Chat.load(model).vocab_size
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "hidden_act": "silu", "vocab_size": rows, "max_position_embeddings": 256,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 4,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(3)
    shapes = read_shape(model).tensors()
    tensors = {
        name: random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        for name, shape in shapes
    }
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (folder / "prepare").mkdir()
    ids = [random.integers(5, rows, 40).tolist() for _ in range(4)]
    checked = [Row([], row, [0] * 20 + [1] * 20, "") for row in ids]
    write_split(folder / "prepare", "validation", checked)
    inputs = {
        "prepare": make_artifact(folder, "prepare", "dataset", files={"x": ""}),
        "merge": make_artifact(folder, "merge", "hf_checkpoint"),
        "export": make_artifact(
            folder, "export", "exported", files={"qnemo/config.json": json.dumps(QNEMO)}
        ),
    }
    out = folder / "build"
    out.mkdir()
    given = {
        "artifacts": str(folder), "engine": "onnxruntime", "engine.precision": "fp32",
        "engine.max_seq_len": 128, "engine.max_input_len": 96,
    }  # fmt: skip
    build.run(default_config(given), inputs, out)
    return out


def register(registry: FakeRegistry, number: int, engine: Path, folder: Path) -> Artifact:
    """A version of the engine that differs in one file."""
    files = {str(f.relative_to(engine)): f.read_bytes() for f in engine.rglob("*") if f.is_file()}
    made = make_artifact(
        folder / f"made-{number}", "build", "engine", files={**files, "note": str(number)}
    )
    store = Folder(folder / "store")
    bundle = push({"build": made}, store)
    registry.versions[number] = {
        "gate": "passed", "digest.build": made.manifest.digest, "store": store.address,
        "bundle": bundle.blob.sha256,
    }  # fmt: skip
    return made


@contextmanager
def following(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a server that follows champion, once it is ready."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    words = ["stage=serve", "serve.follow=champion", "serve.follow_seconds=1", "model.name=bank",
             "register.name=bank", f"serve.port={port}"]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/v1/health/ready").status_code == 200:
                    break
            time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def memory(server: psutil.Process) -> float:
    """MiB of the server and of its engines' processes."""
    total = 0
    for process in (server, *server.children(recursive=True)):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / MIB


async def measure(
    url: str, server: psutil.Process, registry: FakeRegistry, clients: int, changes: int
) -> dict[str, Any]:
    requests: list[Request] = []
    ended = False

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            while not ended:
                begin, version = time.monotonic(), ""
                with suppress(httpx.HTTPError, KeyError):
                    answer = await client.post(f"{url}/v1/chat/completions", json=ASKED)
                    version = answer.raise_for_status().headers[VERSION_HEADER]
                requests.append(Request(begin, time.monotonic() - begin, version))

    asking = [asyncio.create_task(ask()) for _ in range(clients)]
    await asyncio.sleep(QUIET_SECONDS)
    usual = await asyncio.to_thread(memory, server)
    made: list[Change] = []
    spans: list[tuple[float, float]] = []
    for number in range(changes):
        to = 2 - number % 2
        begin, peak, changed = time.monotonic(), 0.0, 0.0
        alone = len(server.children(recursive=True))
        registry.aliases["champion"] = to
        while not (changed and len(server.children(recursive=True)) <= alone):
            peak = max(peak, await asyncio.to_thread(memory, server))
            if not changed:
                later = [r for r in requests if r.begin > begin and r.version == str(to)]
                changed = later[0].begin + later[0].seconds if later else 0.0
            await asyncio.sleep(0.02)
        spans.append((begin, time.monotonic()))
        made.append(Change(to, round(changed - begin, 1), round(peak, 1)))
        await asyncio.sleep(QUIET_SECONDS)
    ended = True
    await asyncio.gather(*asking)
    within = [r for r in requests if any(b <= r.begin <= e for b, e in spans)]
    outside = [r for r in requests if r not in within]
    return {
        "clients": clients,
        "requests": len(requests),
        "lost": sum(not r.version for r in requests),
        "by_version": {v: sum(r.version == v for r in requests) for v in ("1", "2")},
        "changes": [asdict(change) for change in made],
        "memory_mib": {"one_version": round(usual, 1), "peak": max(c.peak_mib for c in made)},
        "latency_ms": {"usual": quantiles(outside), "during_changes": quantiles(within)},
    }


def quantiles(requests: list[Request]) -> dict[str, float]:
    found = np.quantile([r.seconds * 1000 for r in requests], (0.5, 0.95, 1.0))
    return dict(zip(("p50", "p95", "max"), (round(float(x), 1) for x in found), strict=True))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--changes", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, mlflow_registry() as registry:
        folder = Path(name)
        engine = make_engine(folder / "model", given.layers, given.width)
        made = [register(registry, number, engine, folder) for number in (1, 2)]
        registry.aliases |= {"champion": 1, "candidate": 1}
        served = folder / "served"
        served.mkdir()
        os.environ |= {"MLFLOW_TRACKING_URI": registry.uri, "NO_PROXY": "127.0.0.1"}
        with following(served) as (url, server):
            found = asyncio.run(measure(url, server, registry, given.clients, given.changes))
    weights = max(file["bytes"] for file in made[0].manifest.files.values())
    command = f"python -m bench.version_change --layers {given.layers} --width {given.width}"
    command += f" --clients {given.clients} --changes {given.changes}"
    more = found["memory_mib"]["peak"] - found["memory_mib"]["one_version"]
    result = {
        **origin(command, ("onnxruntime", "onnxruntime-genai", "uvicorn", "httpx"), given.commit),
        "weights_mib": round(weights / MIB, 1),
        **found,
        "more_memory_in_weights": round(more / (weights / MIB), 2),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
