"""A conversation on the chat page."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from pipeline.models.chat.renderer import Chat
from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware.recording import Recorder
from tests.browser.chat_site import ANSWER, Site, ask, served, two_models, wait_for_answers

KEY = "sk-right"


def test_an_answer_streams_in_and_is_measured(chat: Chat, open_page: Any) -> None:
    site = Site(chat, gated=True)
    with served(site.app) as url:
        page = open_page(url)
        expect(page.locator("#empty h2")).to_be_visible()
        ask(page, "Hello")
        site.model.gate.release(6)
        expect(page.locator(".answer .text")).to_contain_text("It")
        expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
        expect(page.locator("#stop")).to_be_visible()
        page.wait_for_timeout(100)  # a shorter answer has no speed
        site.model.gate.release(1000)
        wait_for_answers(page)
        expect(page.locator(".answer .text")).to_have_text(ANSWER)
        numbers = page.locator(".answer .numbers").inner_text()
        assert "first token" in numbers
        assert "tokens/s" in numbers
        assert page.locator(".sent").inner_text() == "Hello"
        assert page.title() == "bank"
        # What a model writes is text: it made no element, and nothing of it ran.
        assert page.locator(".answer b").count() == 0
        assert page.evaluate("window.ran") is None


def test_the_conversation_so_far_and_the_settings_are_sent(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        ask(page, "One")
        wait_for_answers(page)
        page.locator("#open").click()
        page.get_by_label("System prompt").fill("Be short.")
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Max tokens").fill("3")
        page.keyboard.press("Enter")
        expect(page.locator("#settings")).not_to_be_visible()
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Two")
        assert sent.value.post_data_json == {
            "model": "bank",
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "One"},
                {"role": "assistant", "content": ANSWER},
                {"role": "user", "content": "Two"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "max_tokens": 3,
        }
        wait_for_answers(page, 2)
        numbers = page.locator(".answer .numbers").last.inner_text()
        assert "3 tokens" in numbers
        assert "reached the maximum length" in numbers
        page.locator("#new").click()
        assert page.locator(".answer").count() == 0
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Three")
        assert len(sent.value.post_data_json["messages"]) == 2


@pytest.mark.parametrize("how", ["Escape", "click"])
def test_stop_ends_the_answer_and_frees_its_slot(chat: Chat, open_page: Any, how: str) -> None:
    site = Site(chat, gated=True)
    with served(site.app) as url:
        page = open_page(url)
        ask(page, "Hello")
        site.model.gate.release(5)
        expect(page.locator(".answer .text")).to_contain_text("It")
        if how == "click":
            page.locator("#stop").click()
        else:
            page.keyboard.press("Escape")
        wait_for_answers(page)
        expect(page.locator(".answer .numbers")).to_contain_text("stopped")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator("#text")).to_be_focused()
        site.model.gate.release(1)  # the step in progress, after which the engine sees it
        page.wait_for_timeout(300)
        assert site.engine.load()[:2] == (0, 0)
        site.model.gate.release(1000)


def test_a_key_is_asked_for_and_stays_in_the_tab(chat: Chat, open_page: Any) -> None:
    with served(Site(chat, keyring=Keyring(None, {"SERVE_API_KEY": KEY})).app) as url:
        page = open_page(url)
        expect(page.locator("#note")).to_have_text("This server requires an API key.")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.press("Escape")  # is not asked again and again
        expect(page.locator("#settings")).not_to_be_visible()
        page.locator("#open").click()
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#note")).to_have_text("The server does not accept this key.")
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#settings")).not_to_be_visible()
        page.reload()
        ask(page, "Hello")
        wait_for_answers(page)
        expect(page.locator(".answer .text")).to_have_text(ANSWER)
        assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
        assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        other = open_page(url)
        expect(other.locator("#note")).to_have_text("This server requires an API key.")


def test_tuned_and_base_answer_beside_each_other(chat: Chat, open_page: Any) -> None:
    with served(two_models(chat)) as url:
        page = open_page(url)
        expect(page.locator("#title")).to_have_text("tuned")
        page.get_by_label("Compare with").select_option("base")
        expect(page.locator("#title")).to_have_text("tuned beside base")
        page.locator("#text").focus()
        ask(page, "Who are you?")
        wait_for_answers(page, 2)
        assert page.locator(".answer .who").all_inner_texts() == ["tuned", "base"]
        assert page.locator(".answer .text").all_inner_texts() == ["I am tuned.", "I am base."]
        left, right = (card.bounding_box() for card in page.locator(".answer").all())
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]
        with page.expect_request(lambda r: '"base"' in (r.post_data or "")) as sent:
            ask(page, "And now?")
        assert sent.value.post_data_json["messages"][1]["content"] == "I am base."
        wait_for_answers(page, 4)
        page.set_viewport_size({"width": 390, "height": 844})
        upper, lower = (card.bounding_box() for card in page.locator(".answer").all()[:2])
        assert upper["x"] == lower["x"]
        assert upper["y"] + upper["height"] < lower["y"]


def test_refusals_are_shown_with_what_to_do(chat: Chat, open_page: Any) -> None:
    site = Site(chat)
    with served(site.app) as url:
        page = open_page(url)
        ask(page, "fee " * 50)
        expect(page.locator(".problem")).to_contain_text("Please shorten it")
        site.model.gated = True
        body = {"model": "bank", "messages": [{"role": "user", "content": "Hello"}]}
        waiting: list[threading.Thread] = []
        for count in range(1, 6):  # one that stands before the gate, and a queue of four
            target, address = httpx.post, f"{url}v1/chat/completions"
            waiting.append(threading.Thread(target=target, args=[address], kwargs={"json": body}))
            waiting[-1].start()
            while sum(site.engine.load()[:2]) < count:
                page.wait_for_timeout(20)
        ask(page, "Hello")
        expect(page.locator(".problem").last).to_contain_text("try again shortly")
        site.model.gated = False
        site.model.gate.release(1000)
        for thread in waiting:
            thread.join(10)


def test_consent_is_asked_only_where_conversations_are_kept(
    chat: Chat, open_page: Any, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    with served(Site(chat, recorder=recorder).app) as url:
        page = open_page(url)
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Hello")
        assert "x-record-consent" not in sent.value.headers
        wait_for_answers(page)
        page.locator("#open").click()
        page.get_by_label("may be recorded").check()
        page.locator("#done").click()
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Hello again")
        assert sent.value.headers["x-record-consent"] == "yes"
        wait_for_answers(page, 2)
    recorder.close()
    (file,) = tmp_path.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 1
    with served(Site(chat).app) as url:
        page = open_page(url)
        page.locator("#open").click()
        expect(page.locator("#settings")).to_be_visible()
        expect(page.locator("#consent")).not_to_be_visible()


def test_a_server_that_goes_away_is_seen(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#title")).to_have_text("bank")
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_have_text("The connection to the server was lost.")
