"""Who splits the traffic between the stable version and the candidate, and how much each gets.

    with splitter(config.canary) as traffic:
        traffic.set_share(0.1)
        ...

HAProxy and the Gateway API are told the weights. Where Argo Rollouts or something else splits the
traffic, nothing is told.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.outside.canary import CanaryConfig, HaproxyConfig, HttpRouteConfig
from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError

SECONDS = 10.0
PERCENTS = 100
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API_HOST = "KUBERNETES_SERVICE_HOST"
MOST_WEIGHT = 256  # of HAProxy


class Traffic(Protocol):
    """What splits the traffic."""

    def set_share(self, share: float) -> None:
        """Give the candidate a share of new requests.

        Raises:
            PipelineError: it cannot be told.
        """

    def lost(self) -> tuple[int, int]:
        """Requests that ended without a response since it began, of the stable version and of the
        candidate."""

    def point_at(self, host: str, port: int) -> None:
        """Say where the candidate is.

        Raises:
            ConfigError: it cannot be told.
        """


def splitter(settings: CanaryConfig) -> Traffic:
    """
    Raises:
        ConfigError: HAProxy has no such backend or server. PipelineError: it does not answer.
        MissingRuntime: there is no kubectl.
    """
    if settings.haproxy.socket:
        return Haproxy(settings.haproxy)
    if settings.http_route.name:
        return HttpRoute(settings.http_route)
    return SplitElsewhere()


def percents(share: float) -> int:
    """A share in whole percents, from 1 to 99; 0 and 1 as they are."""
    if share in (0.0, 1.0):
        return round(share * PERCENTS)
    return min(PERCENTS - 1, max(1, round(share * PERCENTS)))


class Haproxy:
    """The weight of the candidate among the servers of a HAProxy's backend, through its stats
    socket. https://docs.haproxy.org/3.2/management.html#9.3"""

    def __init__(self, settings: HaproxyConfig) -> None:
        assert settings.socket
        self._socket, self._backend = settings.socket, settings.backend
        self._candidate = settings.candidate
        here = self._statistics()
        if self._candidate not in here:
            raise ConfigError(
                f"canary.haproxy: HAProxy's backend {self._backend} has no server "
                f"{self._candidate}: add it with weight 0; it has {', '.join(here) or 'none'}"
            )
        self._begin = {name: _lost(row) for name, row in here.items()}

    def set_share(self, share: float) -> None:
        here = self._statistics()
        up = (row for n, row in here.items() if n != self._candidate and row["status"] != "DOWN")
        others = sum(int(row["weight"] or 0) for row in up)
        weight = round(others * share / (1 - share))
        if share and not (1 <= weight <= MOST_WEIGHT):
            raise ConfigError(
                f"canary.share={share:g}: beside servers that have the weight {others} together, "
                f"the candidate's would be {others * share / (1 - share):.2f}, and HAProxy takes 1 "
                f"to {MOST_WEIGHT}: give the others another weight in its configuration, such as "
                "100"
            )
        self._tell(f"set server {self._server} weight {weight}")

    def lost(self) -> tuple[int, int]:
        now = self._statistics()
        found = {name: _lost(row) - self._begin.get(name, 0) for name, row in now.items()}
        candidate = found.pop(self._candidate)
        return sum(found.values()), candidate

    @property
    def _server(self) -> str:
        return f"{self._backend}/{self._candidate}"

    def point_at(self, host: str, port: int) -> None:
        server = self._server
        self._tell(f"set server {server} addr {host} port {port}", silent=False)
        self._tell(f"set server {server} state ready")

    def _statistics(self) -> dict[str, Mapping[str, str]]:
        """What HAProxy counts of each server of the backend, by name."""
        lines = self._ask("show stat").strip().splitlines()
        if not lines or not lines[0].startswith("# pxname"):
            raise PipelineError(
                f"canary.haproxy.socket={self._socket} is not HAProxy's stats socket: it answers "
                f"{' '.join(lines)[:80]!r}"
            )
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
        here = [row for row in rows if row.get("pxname") == self._backend]
        skipped = ("FRONTEND", "BACKEND")
        return {row["svname"]: row for row in here if row["svname"] not in skipped}

    def _tell(self, command: str, *, silent: bool = True) -> None:
        """silent: HAProxy says nothing where it succeeds."""
        answer = self._ask(command).strip()
        refused = any(w in answer for w in ("Permission denied", "No such", "Unknown", "nvalid"))
        if refused or (silent and answer):
            raise PipelineError(
                f"HAProxy refuses `{command}`: {answer} (its stats socket needs level admin)"
            )

    def _ask(self, command: str) -> str:
        host, colon, port = self._socket.rpartition(":")
        kind = socket.AF_INET if colon and port.isdigit() else socket.AF_UNIX
        place = (host, int(port)) if kind == socket.AF_INET else self._socket
        try:
            with socket.socket(kind, socket.SOCK_STREAM) as link:
                link.settimeout(SECONDS)
                link.connect(place)
                link.sendall(f"{command}\n".encode())
                parts = []
                while part := link.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise PipelineError(
                f"HAProxy does not answer at canary.haproxy.socket={self._socket} ({error}): give "
                "the address of `stats socket … level admin` in its configuration"
            ) from error
        return b"".join(parts).decode(errors="replace")


def _lost(row: Mapping[str, str]) -> int:
    """Requests of a server that ended without its response: it refused the connection, or closed it
    before or in its response."""
    return sum(int(row.get(name) or 0) for name in ("econ", "eresp", "srv_abrt"))


class HttpRoute:
    """Weights of the two backends of an HTTPRoute, through Kubernetes' API: as the pod's service
    account, else by kubectl. https://gateway-api.sigs.k8s.io/guides/traffic-splitting/"""

    def __init__(self, settings: HttpRouteConfig) -> None:
        self._settings = settings
        in_cluster = os.environ.get(API_HOST) and (ACCOUNT / "token").exists()
        if not in_cluster and shutil.which("kubectl") is None:
            raise MissingRuntime(
                "canary.http_route needs a pod with a service account, or kubectl, which is not on "
                "the PATH: install it, or use the chart's canary"
            )
        self._ask = self._as_account if in_cluster else self._by_kubectl
        self._rules = json.loads(self._ask(None))["spec"]["rules"]
        for name in (settings.stable, settings.candidate):
            if not any(ref["name"] == name for rule in self._rules for ref in rule["backendRefs"]):
                raise ConfigError(
                    f"canary.http_route: no rule of the HTTPRoute {settings.name} sends requests "
                    f"to the service {name}: add it with weight 0"
                )

    def set_share(self, share: float) -> None:
        self._ask(json.dumps(weights_patch(self._rules, self._settings, percents(share))))

    def lost(self) -> tuple[int, int]:
        return 0, 0  # a gateway tells nobody what it could not deliver

    def point_at(self, host: str, port: int) -> None:
        raise ConfigError(
            "canary.http_route sends requests to services of Kubernetes: give canary.candidate, "
            "the address of the candidate's"
        )

    def _as_account(self, patch: str | None) -> str:
        """Send a JSON patch, or with None read the route."""
        import httpx

        host, port = os.environ[API_HOST], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        host = f"[{host}]" if ":" in host else host
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{self._settings.namespace}"
        path += f"/httproutes/{self._settings.name}"
        token = (ACCOUNT / "token").read_text().strip()  # it is renewed now and then
        headers = {"Authorization": f"Bearer {token}"}
        try:
            with httpx.Client(
                base_url=f"https://{host}:{port}", verify=str(ACCOUNT / "ca.crt"), headers=headers,
                timeout=SECONDS, trust_env=False,
            ) as client:  # fmt: skip
                if patch is None:
                    answer = client.get(path)
                else:
                    kind = {"Content-Type": "application/json-patch+json"}
                    answer = client.patch(path, content=patch, headers=kind)
        except (httpx.HTTPError, OSError) as error:
            raise PipelineError(
                f"Kubernetes' API at {host}:{port} does not answer ({type(error).__name__})"
            ) from error
        if answer.status_code != 200:
            raise PipelineError(
                f"Kubernetes refuses the HTTPRoute {self._settings.name} ({answer.status_code}): "
                f"{_message(answer.text)}"
            )
        return answer.text

    def _by_kubectl(self, patch: str | None) -> str:
        """The same, as the user of kubectl."""
        verb = "get" if patch is None else "patch"
        rest = ["-o", "json"] if patch is None else ["--type=json", f"--patch={patch}"]
        command = ["kubectl", verb, "httproute", str(self._settings.name)]
        command += ["--namespace", self._settings.namespace, *rest]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired as error:
            raise PipelineError(f"`{' '.join(command[:4])}` took longer than a minute") from error
        if done.returncode:
            why = " ".join(done.stderr.split())[:300]
            raise PipelineError(f"kubectl {verb} httproute {self._settings.name}: {why}")
        return done.stdout


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])[:300]
    except (ValueError, LookupError, TypeError):
        return " ".join(text.split())[:300]


def weights_patch(
    rules: list[dict[str, Any]], settings: HttpRouteConfig, candidate: int
) -> list[dict[str, object]]:
    """The JSON patch that gives both services their weights, in percents, in every rule."""
    weights = {settings.stable: PERCENTS - candidate, settings.candidate: candidate}
    return [
        {"op": "add", "path": f"/spec/rules/{r}/backendRefs/{b}/weight", "value": weights[name]}
        for r, rule in enumerate(rules)
        for b, ref in enumerate(rule["backendRefs"])
        if (name := ref["name"]) in weights
    ]


class SplitElsewhere:
    """Somebody else splits the traffic, such as Argo Rollouts, and waits for the decision."""

    def set_share(self, share: float) -> None: ...

    def lost(self) -> tuple[int, int]:
        return 0, 0

    def point_at(self, host: str, port: int) -> None:
        raise ConfigError(
            "nothing can be told where the candidate is: give canary.candidate, or "
            "canary.haproxy.socket"
        )
