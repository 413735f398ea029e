"""Test deploy/compose.yaml by running it: a model change under load, the dashboard, the alerts.

    python -m tools.try_stack artifacts/build /models/other --out bench/results/stack.json

COMPOSE, ENGINE and SERVICES are as in serve.sh; without Grafana, SERVICES="mlflow prometheus".
Ends with exit code 1 at the first check that fails. The containers keep running.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.paths import ROOT
from tools.try_container import check, engine

DEPLOY = ROOT / "deploy"
API = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/v1"
PROMETHEUS = "http://127.0.0.1:9090/api/v1"
MLFLOW = "http://127.0.0.1:5000/health"
CLIENTS = 8
STEADY_SECONDS = 20
WINDOW = "1m"  # in place of Grafana's $__rate_interval


class Load:
    """Clients that send one question after another, without retries."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.slowest = 0.0
        self._stop = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def finish(self) -> None:
        self._stop = True
        self._thread.join()

    async def _run(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            await asyncio.gather(*(self._client(session, n) for n in range(CLIENTS)))

    async def _client(self, session: Any, number: int) -> None:
        import aiohttp

        while not self._stop:
            begin = time.monotonic()
            body = {
                "model": "model",
                "messages": [{"role": "user", "content": f"Question {number}"}],
                "max_tokens": 64,
                "stream": True,
            }
            try:
                async with session.post(f"{API}/chat/completions", json=body) as response:
                    whole = (await response.read()).rstrip().endswith(b"data: [DONE]")
                    end = "whole" if whole else f"{response.status}, not whole"
            except (aiohttp.ClientError, TimeoutError) as error:
                end = type(error).__name__
            self.ended[end] += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)


def serve(model: Path) -> float:
    """Seconds that serve.sh took."""
    begin = time.monotonic()
    done = subprocess.run(["sh", str(DEPLOY / "serve.sh"), str(model)], check=False)
    check(done.returncode == 0, f"serve.sh {model}")
    return round(time.monotonic() - begin, 1)


def state(server: str) -> str:
    form = "{{.State.Status}} {{.State.ExitCode}}"
    return engine("inspect", "-f", form, f"pipeline-{server}").stdout.strip()


def try_upgrade(model: Path) -> dict[str, Any]:
    """Serve another model while clients send requests: none may be lost."""
    before = {name: state(name) for name in ("server-a", "server-b")}
    live, idle = ("server-a", "server-b")
    if not before["server-a"].startswith("running"):
        live, idle = idle, live
    load = Load()
    time.sleep(5)
    seconds = serve(model)
    time.sleep(5)
    load.finish()
    check(state(live) == "exited 0", f"{live} drained: {state(live)}")
    check(state(idle).startswith("running"), f"{idle} serves")
    check(str(model.resolve()) in engine("inspect", f"pipeline-{idle}").stdout, f"with {model}")
    lost = {end: n for end, n in load.ended.items() if end != "whole"}
    check(not lost, f"{load.ended['whole']} requests by {CLIENTS} clients, lost: {lost or 'none'}")
    return {
        "seconds": seconds,
        "requests": load.ended["whole"],
        "lost": 0,
        "slowest_request_seconds": round(load.slowest, 2),
    }


def get(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)["data"]


def try_dashboard() -> dict[str, int]:
    """Run every query of the dashboard: each must have data. Returns the series by panel."""
    load = Load()
    for path in ("/completions", "/models/unknown"):  # two requests that are refused
        request = urllib.request.Request(f"{API}{path}", data=b"{}" if "comp" in path else None)
        try:
            urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            error.close()
    time.sleep(STEADY_SECONDS)
    found = {}
    dashboard = json.loads((DEPLOY / "grafana/dashboards/serving.json").read_text())
    for panel in dashboard["panels"]:
        for number, target in enumerate(panel["targets"]):
            query = target["expr"].replace("$__rate_interval", WINDOW).replace("$model", ".*")
            values = [
                float(s["value"][1]) for s in get(f"{PROMETHEUS}/query", query=query)["result"]
            ]
            figures = [value for value in values if math.isfinite(value)]
            check(bool(figures), f"{panel['title']} {number}: {figures}")
            found[f"{panel['title']} {number}"] = len(figures)
    load.finish()
    return found


def try_alerts() -> int:
    """Prometheus must have loaded every rule and evaluate it. Returns their number."""
    rules = [r for group in get(f"{PROMETHEUS}/rules")["groups"] for r in group["rules"]]
    declared = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    names = [rule["alert"] for group in declared for rule in group["rules"]]
    check([rule["name"] for rule in rules] == names, f"alerts are loaded: {', '.join(names)}")
    check({rule["health"] for rule in rules} == {"ok"}, "alerts can be evaluated")
    return len(rules)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.try_stack", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of stage=build")
    parser.add_argument("other", type=Path, help="another folder, to be served in its place")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    given = parser.parse_args()
    first = serve(given.model)
    upgrade = try_upgrade(given.other)
    targets = get(f"{PROMETHEUS}/targets", state="active")["activeTargets"]
    up = [target["scrapeUrl"] for target in targets if target["health"] == "up"]
    check(len(up) == 1, f"Prometheus finds the running server: {up}")
    panels, alerts = try_dashboard(), try_alerts()
    with urllib.request.urlopen(MLFLOW, timeout=30) as answer:
        check(answer.status == 200, "MLflow is reachable")
    found = {
        "command": "python -m tools.try_stack MODEL OTHER",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "engine": engine("--version").stdout.strip(),
        "compose": os.environ.get("COMPOSE", "docker compose"),
        "beside": os.environ.get("SERVICES", "mlflow prometheus grafana"),
        "prometheus": get(f"{PROMETHEUS}/status/buildinfo")["version"],
        "first_start_seconds": first,
        "upgrade": upgrade,
        "alerts": alerts,
        "dashboard_series": panels,
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
