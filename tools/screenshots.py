"""Take the documentation's screenshots of real artifacts: summary, MLflow, evaluation, chat page.

    python tools/screenshots.py [artifacts] [docs/images]     # needs chromium in PATH

Starts MLflow on the run's store and the server with its engine, each on a free port.
"""

import json
import os
import shutil
import signal
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

import httpx
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.serving.server_process import running_server  # noqa: E402

SUMMARY_WIDTH = 110  # characters
WINDOW: ViewportSize = {"width": 1360, "height": 1100}
DESKTOP: ViewportSize = {"width": 1100, "height": 760}
PHONE: ViewportSize = {"width": 390, "height": 760}
DRAWING_SECONDS = 8  # an MLflow page needs to draw its charts after it has loaded
CLOSE_DIALOGS = "document.querySelector('[role=dialog] button')?.click()"
QUESTIONS = (
    "What interest rates do personal loans have?",
    "My card was stolen, what now?",
)


def main(artifacts: Path, images: Path) -> None:
    images.mkdir(parents=True, exist_ok=True)
    picture_of_summary(artifacts, images / "summary.svg")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, the user in containers.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"],
        )
        pictures_of_mlflow(browser, artifacts, images)
        pictures_of_report(browser, artifacts, images)
        pictures_of_chat(browser, artifacts, images)
        picture_of_comparison(browser, artifacts, images)
        browser.close()


def pictures_of_mlflow(browser: Browser, artifacts: Path, images: Path) -> None:
    store = artifacts.absolute() / "mlflow" / "mlflow.db"
    page = browser.new_page(viewport=WINDOW)
    with mlflow_ui(store) as address:
        for name, path in pages(store).items():
            page.goto("about:blank")
            page.goto(address + path, wait_until="networkidle")
            page.evaluate(CLOSE_DIALOGS)
            page.wait_for_timeout(1000 * DRAWING_SECONDS)
            page.screenshot(path=images / f"{name}.png")
            print(images / f"{name}.png")
    page.close()


def pictures_of_report(browser: Browser, artifacts: Path, images: Path) -> None:
    """The page of the evaluation, in light and dark."""
    for name in ("report", "report-dark"):
        page = browser.new_page(viewport=WINDOW, color_scheme="dark" if "dark" in name else "light")
        page.goto((artifacts / "evaluate" / "report.html").absolute().as_uri())
        page.screenshot(path=images / f"{name}.png")
        print(images / f"{name}.png")
        page.close()


def pictures_of_chat(browser: Browser, artifacts: Path, images: Path) -> None:
    """A conversation with the run's engine: on a desktop, and on a phone in dark mode."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with running_server(artifacts / "build", model="bank", log=log) as server:
            for name, viewport in (("chat", DESKTOP), ("chat-dark-phone", PHONE)):
                page = browser.new_page(
                    viewport=viewport,
                    color_scheme="dark" if "dark" in name else "light",
                    device_scale_factor=2,
                )
                page.goto(server.url.removesuffix("v1"))
                for count, question in enumerate(QUESTIONS, 1):
                    ask(page, question, count)
                page.screenshot(path=images / f"{name}.png")
                print(images / f"{name}.png")
                page.close()


def picture_of_comparison(browser: Browser, artifacts: Path, images: Path) -> None:
    """The base model beside the run's LoRA adapter."""
    settings = ["engine.name=hf", "engine.lora_rank=64"]
    adapter = {"lora_name": "tuned", "lora_path": str(artifacts.absolute() / "merge/adapter")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        base = ROOT / "data/base_model"
        with running_server(base, model="base", log=log, settings=settings) as server:
            httpx.post(f"{server.url}/load_lora_adapter", json=adapter, timeout=60)
            page = browser.new_page(viewport=DESKTOP, device_scale_factor=2)
            page.goto(server.url.removesuffix("v1"))
            page.locator("#open").click()
            page.locator("#model").select_option("tuned")
            page.locator("#compare").select_option("base")
            page.locator("#done").click()
            for count, question in enumerate(QUESTIONS, 1):
                ask(page, question, 2 * count)
            page.screenshot(path=images / "chat-beside.png")
            print(images / "chat-beside.png")
            page.close()


def ask(page: Page, question: str, answers: int) -> None:
    """Send a question, and wait until the page has this number of complete answers."""
    page.locator("#text").fill(question)
    page.locator("#send").click()
    page.locator(".answer[aria-busy=false]").nth(answers - 1).wait_for()


def picture_of_summary(artifacts: Path, picture: Path) -> None:
    """The summary as in the terminal, drawn by rich."""
    import io

    from rich.console import Console

    from pipeline.orchestration.summary import SUMMARY
    from pipeline.orchestration.summary_view import show_summary

    console = Console(record=True, width=SUMMARY_WIDTH, file=io.StringIO(), highlight=False)
    show_summary(json.loads((artifacts / SUMMARY).read_text()), artifacts, console)
    console.save_svg(str(picture), title="make demo")
    print(picture)


def pages(store: Path) -> dict[str, str]:
    """Names and paths of the UI's pages: the newest pipeline run, its charts, the model."""
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
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # also ends its workers
        server.wait()


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:]]
    main(*(places + [Path("artifacts"), Path("docs/images")][len(places) :]))
