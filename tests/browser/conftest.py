"""A headless Chromium, driven by Playwright.

Debian's Chromium or Google's Chrome where one is in PATH, else the one that `playwright install
chromium` downloads; without any, Playwright's error says so.
"""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.models.chat.renderer import Chat
from tests.unit.model_folders import make_model_folder


@pytest.fixture(scope="package")  # its event loop would run on under other tests
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, who runs tests in containers.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("page"), "demo"))


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that must load nothing from elsewhere and break no rule of their policy."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(url: str, width: int = 1200, height: int = 800, **how: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        ours = url, "data:"
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if "Policy" in m.text else None)
        page.on("request", lambda r: None if r.url.startswith(ours) else complaints.append(r.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
