"""Pictures for the README, from real artifacts: docs/images/summary.svg and the MLflow UI as PNG.

    python tools/screenshots.py [artifacts] [docs/images]     # needs chromium in PATH

The UI is opened on the store that the run left, on a free port, and closed again.
"""

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WIDTH = 110  # characters of the summary
WINDOW = (1360, 1100)
LOADING_SECONDS = 8
CLOSE_DIALOGS = "document.querySelector('[role=dialog] button')?.click()"


def main(artifacts: Path, images: Path) -> None:
    images.mkdir(parents=True, exist_ok=True)
    picture_of_summary(artifacts, images / "summary.svg")
    store = artifacts.absolute() / "mlflow" / "mlflow.db"
    with mlflow_ui(store) as address:
        browser = Browser()
        try:
            for name, page in pages(store).items():
                browser.screenshot(address + page, images / f"{name}.png")
        finally:
            browser.close()


def picture_of_summary(artifacts: Path, picture: Path) -> None:
    """The summary as the terminal shows it, drawn by rich."""
    import io

    from rich.console import Console

    from pipeline.summary import SUMMARY, show_summary

    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    show_summary(json.loads((artifacts / SUMMARY).read_text()), artifacts, console)
    console.save_svg(str(picture), title="make demo")
    print(picture)


def pages(store: Path) -> dict[str, str]:
    """Name → page of the UI: the newest pipeline run, its curves, the registered model."""
    with sqlite3.connect(store) as database:
        run, experiment = database.execute(
            "SELECT run_uuid, experiment_id FROM runs WHERE run_uuid NOT IN "
            "(SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId') "
            "ORDER BY start_time DESC LIMIT 1"
        ).fetchone()
        curve = database.execute(
            "SELECT run_uuid FROM runs JOIN tags USING (run_uuid) "
            "WHERE name = 'finetune' AND key = 'mlflow.parentRunId' AND tags.value = ?",
            (run,),
        ).fetchone()
        version = database.execute(
            "SELECT name, version FROM model_versions ORDER BY creation_time DESC LIMIT 1"
        ).fetchone()
    found = {"mlflow": f"/#/experiments/{experiment}/runs/{run}"}
    if curve:
        found["mlflow_curves"] = f"/#/experiments/{experiment}/runs/{curve[0]}/model-metrics"
    if version:
        found["mlflow_model"] = f"/#/models/{version[0]}/versions/{version[1]}"
    return found


@contextmanager
def mlflow_ui(store: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{store}",
    ]
    command += ["--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, start_new_session=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


class Browser:
    """Headless Chromium, driven over its debugging pipe (file descriptors 3 and 4)."""

    def __init__(self) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if not chromium:
            sys.exit("chromium is not in PATH: install it, or open the MLflow UI by hand")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        flags += "--disable-background-networking --disable-component-update --disable-sync"
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [chromium, *flags.split(), "--hide-scrollbars", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={self.profile.name}", "about:blank"]
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", *command],
            pass_fds=[theirs_in, theirs_out],
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.count, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        width, height = WINDOW
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.into, 1 << 20)
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.count:
                return answer["result"]

    def screenshot(self, address: str, picture: Path) -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        time.sleep(LOADING_SECONDS)
        self.call("Runtime.evaluate", expression=CLOSE_DIALOGS)
        time.sleep(1)
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        picture.write_bytes(base64.b64decode(shot))
        print(picture)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:]]
    main(*(places + [Path("artifacts"), Path("docs/images")][len(places) :]))
