"""HAProxy's weights, and those of an HTTPRoute."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.deployment.canary import traffic
from pipeline.deployment.canary.traffic import Traffic, percents, splitter

HEAD = "# pxname,svname,status,weight,econ,eresp,srv_abrt\n"


class Proxy:
    """HAProxy's stats socket, as its management guide describes the commands."""

    def __init__(self, path: Path, stable: int = 100) -> None:
        self.told: list[str] = []
        self.failed = 0
        self.stable, self.answer, self.moved = stable, "\n", ""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            with link:
                command = link.recv(1000).decode().strip()
                link.sendall(self._reply(command).encode())

    def _reply(self, command: str) -> str:
        if command == "show stat":
            return (
                f"{HEAD}servers,a,UP,{self.stable},0,0,0\nservers,b,DOWN,{self.stable},0,0,0\n"
                f"servers,canary,UP,0,1,{self.failed},0\nservers,BACKEND,UP,1,9,9,9\n"
                "other,x,UP,1,0,0,0\n\n"
            )
        self.told.append(command)
        return self.moved if " addr " in command else self.answer

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path / "admin.sock")
    yield made
    made.close()


def of_haproxy(folder: Path, **given: object) -> Traffic:
    settings = {"canary.haproxy.socket": str(folder / "admin.sock"), **given}
    return splitter(default_config(settings).canary)


def test_the_weight_gives_the_candidate_its_share(proxy: Proxy, tmp_path: Path) -> None:
    proxied = of_haproxy(tmp_path)
    for share in (0.1, 0.5, 0.0):
        proxied.set_share(share)
    assert proxy.told == [f"set server servers/canary weight {n}" for n in (11, 100, 0)]
    proxy.failed = 4
    assert proxied.lost() == (0, 4)
    proxy.moved = "IP changed from '10.0.0.1' to '127.0.0.1'\n"
    proxied.point_at("127.0.0.1", 8001)
    assert proxy.told[-2] == "set server servers/canary addr 127.0.0.1 port 8001"


def test_a_share_that_no_weight_gives_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    proxied = of_haproxy(tmp_path)
    proxy.stable = 1
    with pytest.raises(ConfigError, match="give the others another weight"):
        proxied.set_share(0.1)


def test_a_proxy_that_refuses_or_is_not_there_is_named(proxy: Proxy, tmp_path: Path) -> None:
    proxied = of_haproxy(tmp_path)
    proxy.answer = "Permission denied\n"
    with pytest.raises(PipelineError, match="level admin"):
        proxied.set_share(0.1)
    with pytest.raises(ConfigError, match=r"has no server x: add it with weight 0; it has a, b"):
        of_haproxy(tmp_path, **{"canary.haproxy.candidate": "x"})
    with pytest.raises(PipelineError, match="HAProxy does not answer"):
        of_haproxy(tmp_path / "nowhere")


ROUTE = {
    "spec": {
        "rules": [
            {"backendRefs": [{"name": "support", "weight": 100}, {"name": "support-canary"}]},
            {"backendRefs": [{"name": "other"}, {"name": "support-canary"}, {"name": "support"}]},
        ]
    }
}


def kubectl(folder: Path, monkeypatch: pytest.MonkeyPatch, route: object) -> Path:
    """A kubectl that gives a route, and notes its arguments."""
    (folder / "route.json").write_text(json.dumps(route))
    script = folder / "kubectl"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {folder}/told\n'
        f'[ "$1" = get ] && cat {folder}/route.json || true\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "told"


def of_route() -> Traffic:
    names = {"name": "support", "stable": "support", "candidate": "support-canary"}
    return splitter(default_config({f"canary.http_route.{k}": v for k, v in names.items()}).canary)


def test_an_httproute_gets_both_weights_in_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = kubectl(tmp_path, monkeypatch, ROUTE)
    proxied = of_route()
    proxied.set_share(0.1)
    words = told.read_text().splitlines()
    assert words[-6:-2] == ["httproute", "support", "--namespace", "default"]
    patch = json.loads(words[-1].removeprefix("--patch="))
    assert {(each["path"], each["value"]) for each in patch} == {
        ("/spec/rules/0/backendRefs/0/weight", 90), ("/spec/rules/0/backendRefs/1/weight", 10),
        ("/spec/rules/1/backendRefs/1/weight", 10), ("/spec/rules/1/backendRefs/2/weight", 90),
    }  # fmt: skip


def test_a_pod_asks_the_api_as_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []
    status = 200

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json=ROUTE if status == 200 else {"message": "not yours"})

    real = httpx.Client
    monkeypatch.setattr(
        httpx, "Client",
        lambda verify, **given: real(**given, transport=httpx.MockTransport(answer)),
    )  # fmt: skip
    monkeypatch.setattr(traffic, "ACCOUNT", tmp_path)
    monkeypatch.setenv(traffic.API_HOST, "10.0.0.1")
    (tmp_path / "token").write_text("a-token\n")
    route = of_route()
    route.set_share(0.25)
    get, patch = asked
    assert get.url == patch.url
    assert str(patch.url) == (
        "https://10.0.0.1/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes/support"
    )
    assert patch.method == "PATCH"
    assert patch.headers["Content-Type"] == "application/json-patch+json"
    assert patch.headers["Authorization"] == "Bearer a-token"
    assert {each["value"] for each in json.loads(patch.content)} == {25, 75}
    status = 403
    with pytest.raises(PipelineError, match=r"\(403\): not yours"):
        route.set_share(0.5)


def test_a_route_without_the_service_and_a_machine_without_kubectl_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {"spec": {"rules": [{"backendRefs": [{"name": "support"}]}]}}
    kubectl(tmp_path, monkeypatch, bare)
    with pytest.raises(ConfigError, match="sends requests to the service support-canary"):
        of_route()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(MissingRuntime, match="or kubectl"):
        of_route()


def test_shares_are_whole_percents_and_never_none_by_rounding() -> None:
    assert [percents(share) for share in (0.0, 0.001, 0.1, 0.995, 1.0)] == [0, 1, 10, 99, 100]
