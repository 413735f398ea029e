"""The Dockerfile's contract and its entry point, without a container engine."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.core.paths import ROOT
from pipeline.serving.container import launch, nim_variables

SERVERS = ("cpu", "serve-cpu", "serve-vllm", "serve-trtllm")
TARGETS = (*SERVERS, "train")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    lines = [s for s in (ROOT / "Dockerfile").read_text().splitlines() if s.strip()]
    text = "\n".join(s for s in lines if not s.startswith("#")).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (s.partition(" ") for s in text.split("\n"))]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.split(" AS ")[1]] = []
        list(found.values())[-1].append((name, rest))
    return found


def last(target: str, name: str) -> str:
    return [rest for n, rest in stages()[target] if n == name][-1]


def test_every_target_is_there_and_its_base_is_an_argument() -> None:
    arguments = {rest.partition("=")[0] for name, rest in stages()[""] if name == "ARG"}
    assert set(TARGETS) <= set(stages())
    for target in TARGETS:
        base = re.fullmatch(r"\$\{(\w+)\} AS [\w-]+", last(target, "FROM"))
        assert base, target
        assert base[1] in arguments


def test_no_default_names_a_registry() -> None:
    for name, rest in stages()[""]:
        assert name == "ARG"
        image = rest.partition("=")[2]
        assert "." not in image.split("/")[0] or "/" not in image, rest


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_an_unprivileged_user_without_a_shell(target: str) -> None:
    assert last(target, "USER") == "1000:1000", "by number: Kubernetes checks runAsNonRoot by it"
    assert json.loads(last(target, "ENTRYPOINT")) == ["python3", "-m", "deploy.entrypoint"]
    names = [name for name, _ in stages()[target]]
    assert names.index("ENTRYPOINT") > names.index("USER")


@pytest.mark.parametrize("target", TARGETS)
def test_it_writes_nowhere_but_to_volumes_and_tmp(target: str) -> None:
    assert set(json.loads(last(target, "VOLUME"))) == {launch.MODEL, nim_variables.CACHE}
    (owned,) = [r for n, r in stages()[target] if n == "RUN" and "install -d -o 1000" in r]
    for folder in (launch.MODEL, nim_variables.CACHE):
        assert folder in owned, "a named volume takes over the owner of the image's folder"
    settings = dict(pair.split("=", 1) for pair in last(target, "ENV").split())
    assert settings["HOME"] == "/tmp"


@pytest.mark.parametrize("target", SERVERS)
def test_its_health_check_needs_no_other_program_and_it_drains(target: str) -> None:
    assert last(target, "HEALTHCHECK").endswith('CMD ["python3", "deploy/healthcheck.py"]')
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    assert last(target, "EXPOSE") == str(launch.PORT)


@pytest.mark.parametrize("target", TARGETS)
def test_its_labels_describe_it(target: str) -> None:
    labels = last(target, "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    names = [name for name, _ in stages()[target]]
    assert "RUN" not in names[names.index("ARG") :], "another revision would build it all again"
    assert ("ARG", f"VERSION={__version__}") in stages()[target]


def test_the_profiles_of_the_images_are_ones_that_the_server_knows() -> None:
    for target in ("serve-vllm", "serve-trtllm"):
        settings = dict(pair.split("=", 1) for pair in last(target, "ENV").split())
        assert nim_variables.translate({"NIM_MODEL_PROFILE": settings["NIM_MODEL_PROFILE"]}).runtime


def ignored(path: str) -> bool:
    """By .dockerignore, whose last matching line decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.removeprefix("!")
        if line and not line.startswith("#") and _matches(path, rule):
            verdict = not line.startswith("!")
    return verdict


def _matches(path: str, rule: str) -> bool:
    parents = [str(p) for p in [Path(path), *Path(path).parents][:-1]]
    return any(
        fnmatch.fnmatch(p, rule) or fnmatch.fnmatch(f"/{p}", rule.replace("**/", "*/"))
        for p in parents
    )


def test_the_build_context_has_only_what_the_image_needs() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    needed = [f for f in tracked if f.startswith(("pipeline/", "conf/"))]
    needed += ["Makefile", "dvc.yaml", "params.yaml", "tools/setup.sh"]
    needed += ["requirements.lock"]
    needed += ["data/base_model/model.safetensors", "data/bank/train.jsonl"]
    needed += ["deploy/entrypoint.py", "deploy/healthcheck.py"]
    assert [file for file in needed if ignored(file)] == []
    unwanted = ["tests/unit/test_container.py", ".git/config", ".venv/bin/python", "mlruns/0"]
    unwanted += ["artifacts/build/model.onnx", "docs/containers.md", "deploy/.env"]
    unwanted += ["pipeline/serving/__pycache__/app.cpython-311.pyc"]
    assert [file for file in unwanted if not ignored(file)] == []


def test_what_is_copied_by_name_exists() -> None:
    for target, listed in stages().items():
        for name, rest in listed:
            sources = rest.split()[:-1]
            if name == "COPY" and not rest.startswith(("--from", ". ")):
                for source in sources:
                    assert list(ROOT.glob(source)), f"{target}: {source}"
                    assert not any(ignored(p.name) for p in ROOT.glob(source) if p.parent == ROOT)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.entrypoint", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_arguments_are_a_stages() -> None:
    process = start("stage=nothing")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "stage=nothing does not exist" in said


def test_a_wrong_variable_ends_it_with_its_name() -> None:
    process = start(NIM_SERVER_PORT="80")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("pipeline: ConfigError: NIM_SERVER_PORT=80: ")


def test_an_engine_without_a_description_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text("{")
    process = start(NIM_MODEL_PATH=str(tmp_path))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4
    assert said.startswith(f"pipeline: ArtifactError: {tmp_path}/engine.json cannot be read")


def test_variables_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    process = start(NIM_MODEL_PATH=str(tmp_path), NIM_PASSTHROUGH_ARGS="serve.max_queue=0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "serve.max_queue=0" in said


def test_a_stop_while_it_starts_is_not_a_failure(tmp_path: Path) -> None:
    """The first process of a container is sent no signal that it has no handler for."""
    server = "import os, signal, sys, types; m = types.ModuleType('server');"
    server += "m.main = lambda command: os.kill(os.getpid(), signal.SIGTERM);"
    server += "sys.modules['pipeline.serving.__main__'] = m;"
    code = server + "from deploy.entrypoint import main; main([]); os._exit(1)"
    (tmp_path / "config.json").write_text("{}")
    given = {"NIM_MODEL_PATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=given, timeout=60, check=False)
    assert done.returncode == 0


@pytest.fixture
def health() -> Iterator[tuple[int, dict[str, int]]]:
    """A server's port, and the status that it answers with."""
    answer = {"status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health/ready"
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(b'{"status":"warming up"}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, answer
        server.shutdown()


def check_health(port: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "deploy/healthcheck.py"],
        cwd=ROOT,
        env={"NIM_SERVER_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout


def test_health_is_the_servers_readiness(health: tuple[int, dict[str, int]]) -> None:
    port, answer = health
    assert check_health(port) == (0, "")
    answer["status"] = 503
    assert check_health(port) == (1, '{"status":"warming up"}\n')


def test_without_a_server_it_is_unhealthy() -> None:
    code, said = check_health(1)
    assert code == 1
    assert said.startswith("port 1: ")
