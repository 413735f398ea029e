"""compose.yaml, and serve.sh with commands in place of Docker that only note what they are told."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.paths import ROOT
from pipeline.serving.container import launch, nim_variables

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: Mapping[str, Any] = COMPOSE["services"]


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_docker_compose_accepts_the_files(files: list[str], tmp_path: Path) -> None:
    """It checks them by its schema. Debian's, of version 1, does not know `name` yet."""
    deploy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, deploy, ignore=shutil.ignore_patterns(".env"))
    text = (deploy / "compose.yaml").read_text()
    (deploy / "compose.yaml").write_text(text.replace("name: pipeline\n", "", 1))
    words = [word for file in files for word in ("--file", file)]
    words += [word for name in ("a", "b", "canary") for word in ("--profile", name)]
    done = subprocess.run(
        ["docker-compose", *words, "config", "--services"], cwd=deploy, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(SERVICES)


def test_the_servers_differ_in_name_and_model_alone() -> None:
    names = ("a", "b", "canary")
    servers = [dict(SERVICES[f"server-{name}"]) for name in names]
    for server, name in zip(servers, names, strict=True):
        assert server.pop("container_name") == f"pipeline-server-{name}"
        assert server.pop("profiles") == [name]
        model, *others = server.pop("volumes")
        assert model == f"${{MODEL_{name.upper()}:-../artifacts/build}}:{launch.MODEL}:ro"
        assert others == [f"cache:{nim_variables.CACHE}"]
    assert servers[0] == servers[1] == servers[2]


def test_the_candidate_gets_no_request_until_the_canary_says_so() -> None:
    lines = (DEPLOY / "proxy/haproxy.cfg").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("server canary ")]
    assert " weight 0" in line
    # A weight of 1 could not give a candidate a tenth.
    assert any("default-server" in line and " weight 100 " in line for line in lines)
    settings = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["canary"]["haproxy"]
    assert f"backend {settings['backend']}" in lines
    assert line.split()[1] == settings["candidate"]
    socket = "/run/haproxy/admin.sock"
    assert f"    stats socket {socket} mode 600 level admin" in lines
    assert all("proxy:/run/haproxy" in SERVICES[name]["volumes"] for name in ("proxy", "canary"))
    assert SERVICES["proxy"]["user"] == SERVICES["canary"]["user"]
    assert socket in (DEPLOY / "canary.sh").read_text()


def test_only_the_servers_get_gpus() -> None:
    added = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert set(added) == {"server-a", "server-b", "server-canary"}
    assert set(added) <= set(SERVICES)
    assert added["server-a"] == added["server-b"] == added["server-canary"]
    assert not set(added["server-a"]) & set(SERVICES["server-a"]), "it only adds"


def test_servers_are_set_by_variables_that_they_know() -> None:
    names = set(SERVICES["server-a"]["environment"])
    assert names <= {*nim_variables.VARIABLES, "SERVE_API_KEY"}


def test_servers_are_locked_down_and_may_drain() -> None:
    server = SERVICES["server-a"]
    assert (server["read_only"], server["tmpfs"], server["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    longest = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["serve"]["request_timeout"]
    assert int(server["stop_grace_period"].removesuffix("s")) > longest


def test_the_proxy_uses_either_server_while_it_is_ready() -> None:
    lines = (DEPLOY / "proxy/haproxy.cfg").read_text().splitlines()
    servers = {line.split()[2] for line in lines if line.split()[:1] == ["server"]}
    assert servers == {f"{name}:{launch.PORT}" for name in SERVICES if name.startswith("server-")}
    assert "    option httpchk GET /health/ready" in lines
    ((every, fall),) = re.findall(r"inter (\d+)ms fall (\d+)", "\n".join(lines))
    assert int(fall) > 1, "or one late check would take a busy server out"
    seconds = (int(fall) + 1) * int(every) / 1000
    assert seconds < launch.DRAIN_SECONDS, "or requests would be sent in vain"


def test_the_proxy_waits_for_headers_as_the_servers_do_and_hides_metrics() -> None:
    text = (DEPLOY / "proxy/haproxy.cfg").read_text()
    serve = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["serve"]
    assert f"timeout http-request {serve['header_timeout']}s" in text
    # A server takes /%6detrics for /metrics.
    assert "deny deny_status 404 if { path,url_dec -m str /metrics /v1/metrics }" in text


def test_only_this_host_reaches_the_ports() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_is_mounted_exists_or_is_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_dir(), f"{name}: {volume}"
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"], f"{name}: {volume}"


def test_images_are_named_without_a_registry() -> None:
    for name, service in SERVICES.items():
        variable, _, default = service["image"].removeprefix("${").removesuffix("}").partition(":-")
        assert variable.isupper(), name
        assert "." not in default.split("/")[0] or "/" not in default, name


def test_prometheus_finds_every_server_by_the_name_they_share() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == SERVICES["server-a"]["networks"]["default"]["aliases"]
    assert found["port"] == launch.PORT
    assert job["job_name"] == "server", "the alerts and the dashboard ask for it"


class Host:
    """A copy of deploy/ and commands that note their arguments in `told`."""

    def __init__(self, folder: Path) -> None:
        self.deploy = folder / "deploy"
        shutil.copytree(DEPLOY, self.deploy, ignore=shutil.ignore_patterns(".env"))
        self._told = folder / "told"
        self._state = folder / "state"
        stub = folder / "stub"
        stub.write_text(
            f"""#!/bin/sh
            echo "$@" >> {self._told}
            case "$*" in
            *stage=canary*) exit $(cat {folder}/decision) ;;
            *healthcheck*) grep -q "running 0" {self._state} ;;
            *inspect*) echo "$3" | sed "s/{{{{.State.Running}}}}/true/
                s/{{{{.State.Status}}}} {{{{.RestartCount}}}}/$(cat {self._state})/" ;;
            esac
            """
        )
        stub.chmod(0o755)
        self._environment = {
            "PATH": os.environ["PATH"],
            "COMPOSE": f"{stub} compose",
            "ENGINE": str(stub),
            "READY_SECONDS": "3",
        }

    def serve(self, model: Path, state: str = "running 0") -> subprocess.CompletedProcess[str]:
        """Run serve.sh; `state`: the new container's, and how often it was started again."""
        self._told.write_text("")
        self._state.write_text(state)
        return subprocess.run(
            ["sh", str(self.deploy / "serve.sh"), str(model)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def canary(self, model: Path, decision: int, state: str = "running 0") -> tuple[int, str]:
        """Run canary.sh, whose stage ends with this exit code; its own, and what it said."""
        (self._told.parent / "decision").write_text(str(decision))
        self._told.write_text("")
        self._state.write_text(state)
        done = subprocess.run(
            ["sh", str(self.deploy / "canary.sh"), str(model), "canary.share=0.2"],
            env=self._environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    def told(self) -> list[str]:
        return self._told.read_text().splitlines()

    def remembers(self) -> dict[str, str]:
        lines = (self.deploy / ".env").read_text().split()
        assert len(lines) == len({line.partition("=")[0] for line in lines})
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / f"support-{n}" for n in (1, 2)]
    for folder in folders:
        folder.mkdir()
    return folders


def test_the_first_model_starts_everything(host: Host, models: list[Path]) -> None:
    assert host.serve(models[0]).returncode == 0
    told = host.told()
    assert told[0] == "compose up -d server-a"
    assert "compose up -d proxy mlflow prometheus grafana" in told
    assert not [line for line in told if "compose stop" in line]
    assert host.remembers() == {"MODEL_A": str(models[0]), "LIVE": "a", "COMPOSE_PROFILES": "a"}


def test_the_next_takes_over_before_the_former_stops(host: Host, models: list[Path]) -> None:
    host.serve(models[0])
    assert host.serve(models[1]).returncode == 0
    told = host.told()
    order = [
        "compose up -d server-b",
        "exec pipeline-server-b python3 deploy/healthcheck.py",
        "compose stop server-a",
    ]
    assert [line for line in told if line in order] == order
    assert host.remembers() == {
        "MODEL_A": str(models[0]),
        "MODEL_B": str(models[1]),
        "LIVE": "b",
        "COMPOSE_PROFILES": "b",
    }


@pytest.mark.parametrize("state", ["exited 0", "restarting 1", "running 1"])
def test_a_model_that_does_not_start_changes_nothing(
    host: Host, models: list[Path], state: str
) -> None:
    host.serve(models[0])
    refused = host.serve(models[1], state)
    assert refused.returncode == 1
    assert "did not become ready" in refused.stderr
    assert "server-a keeps serving" in refused.stderr
    told = host.told()
    assert sum("healthcheck" in line for line in told) == 1, "it never becomes ready: no waiting"
    assert told[-1] == "compose stop server-b"
    assert "compose stop server-a" not in told
    assert host.remembers()["LIVE"] == "a"


CANARY = (
    "compose run --rm canary stage=canary artifacts=/canary canary.stable=http://server-a:8000 "
    "canary.candidate=http://server-canary:8000 "
    "canary.haproxy.socket=/run/haproxy/admin.sock canary.share=0.2"
)


def test_a_canary_that_is_promoted_takes_over_before_its_server_stops(
    host: Host, models: list[Path]
) -> None:
    host.serve(models[0])
    assert host.canary(models[1], 0)[0] == 0
    order = [
        "compose up -d server-canary", CANARY, "compose up -d server-b", "compose stop server-a",
        "compose stop server-canary",
    ]  # fmt: skip
    assert [line for line in host.told() if line in order] == order
    assert host.remembers()["LIVE"] == "b"


def test_a_canary_that_is_rolled_back_changes_nothing(host: Host, models: list[Path]) -> None:
    host.serve(models[0])
    code, _ = host.canary(models[1], 5)
    assert code == 5
    assert host.told()[-2:] == [CANARY, "compose stop server-canary"]
    assert host.remembers()["LIVE"] == "a"


def test_a_candidate_that_does_not_start_gets_no_request(host: Host, models: list[Path]) -> None:
    assert host.canary(models[1], 0)[0] == 2  # nothing is served yet
    host.serve(models[0])
    code, said = host.canary(models[1], 0, "restarting 1")
    assert code == 1
    assert "server-a keeps serving" in said
    assert CANARY not in host.told()
    assert host.told()[-1] == "compose stop server-canary"


def test_without_a_folder_it_prints_its_usage(host: Host, tmp_path: Path) -> None:
    refused = host.serve(tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "usage: deploy/serve.sh FOLDER" in refused.stderr
    assert host.told() == []
