"""The chat page at every width, in light and dark, by keyboard, and under its policy."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from pipeline.models.chat.renderer import Chat
from tests.browser.chat_site import Site, ask, served, wait_for_answers

LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, level AA
LEAST_HEIGHT = 24  # pixels of a control: WCAG 2.2, 2.5.8
# Of every text on the page: its contrast to what is behind it, and the beginning of its element.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (color) => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
      v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
  };
  const texts = "h1, h2, h3, p, span, kbd, label, small, button, input, .text, .sent, .problem";
  return [...document.querySelectorAll(texts)]
    .filter((e) => e.checkVisibility() && (e.textContent.trim() || e.value))
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 60)];
    });
}"""
UNNAMED = """[...document.querySelectorAll("button, input, select, textarea")].filter((e) =>
  !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_cut_off_at_any_width(chat: Chat, open_page: Any, width: int) -> None:
    site = Site(chat, model="a-model-with-a-rather-long-name-" * 2, answer="W" * 60)
    with served(site.app) as url:
        page = open_page(url, width=width, height=700)
        ask(page, "word " * 5 + "W" * 60)
        wait_for_answers(page)
        for control in page.locator("header button, #ask button:visible, #text").all():
            box = control.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["height"] >= LEAST_HEIGHT
        page.locator("#open").click()
        expect(page.locator("#settings")).to_be_visible()
        box = page.locator("#settings").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 700])
def test_why_the_server_is_not_ready_fits_into_the_header(
    chat: Chat, open_page: Any, width: int
) -> None:
    site, reason = Site(chat), "the engine's process ended and is being started again, " * 3
    site.engine.down = lambda: reason.strip()  # type: ignore[method-assign]
    with served(site.app) as url:
        page = open_page(url, width=width)
        expect(page.locator("#state")).to_have_text(reason.strip())
        expect(page.locator("#state")).to_have_attribute("title", reason.strip())
        expect(page.locator("#about")).to_contain_text(f"not ready: {reason.strip()}")
        box = page.locator("#open").bounding_box()
        assert box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(chat: Chat, open_page: Any, scheme: str) -> None:
    site = Site(chat)
    with served(site.app) as url:
        page = open_page(url, color_scheme=scheme)
        found = page.evaluate(CONTRASTS)
        ask(page, "Hello")
        wait_for_answers(page)
        site.model.error = RuntimeError("no such kernel")
        ask(page, "Again")
        expect(page.locator(".problem")).to_contain_text("no such kernel")
        found += page.evaluate(CONTRASTS)
        page.locator("#open").click()
        expect(page.locator("#settings")).to_be_visible()
        found += page.evaluate(CONTRASTS)
        assert len(found) > 20
        assert [(round(c, 2), what) for c, what in found if c < LEAST_CONTRAST] == []
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("Escape")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_every_control_has_a_name_and_is_reached_by_tab(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        ask(page, "Hello")
        wait_for_answers(page)
        assert page.evaluate(UNNAMED) == []
        reached = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.ariaLabel || document.activeElement.id")
            reached.add(name)
        assert reached >= {
            "New chat", "Settings", "This request as code", "Copy the reply of bank", "model",
            "Edit this message", "Ask bank again", "text",
        }  # fmt: skip
        page.locator("#open").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#settings")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#text")).to_be_focused()


def test_the_policy_lets_no_foreign_script_run(chat: Chat, browser: Browser) -> None:
    with served(Site(chat).app) as url:
        page = browser.new_page()
        page.goto(url)
        page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.ran = true";
              document.body.append(script);
            }"""
        )
        assert page.evaluate("window.ran") is None
        page.close()
