"""What the chat page does with conversations: it keeps, changes, compares, rates and shows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pipeline.core.paths import ROOT
from pipeline.models.chat.renderer import Chat
from pipeline.serving.feedback import Feedback
from tests.browser.chat_site import ANSWER, Site, ask, served, two_models, wait_for_answers
from tests.unit.serving.tool_templates import tool_chat

AXE = ROOT / "tests/browser/node_modules/axe-core/axe.min.js"
MARKDOWN = """# Rates

A **fixed** rate, *not* `variable`. See [a](https://bank.example/a) or [b](javascript:alert(1)).

| term | rate |
|---|---|
| 12 | 8.9 % |

1. One
2. Two
   - inner

```python
x = "<b>1</b>"  # one
```

> quoted <img src=x onerror="window.ran = true">
![picture](https://bank.example/p.png)
"""


def settings(page: Page, **fields: str) -> None:
    page.locator("#open").click()
    for label, value in fields.items():
        page.locator(f"#{label.replace('_', '-')}").fill(value)
    page.locator("#done").click()
    expect(page.locator("#settings")).not_to_be_visible()


def test_a_conversation_survives_a_reload_and_can_be_deleted(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        ask(page, "One")
        wait_for_answers(page)
        page.reload()
        expect(page.locator(".answer .text")).to_have_text(ANSWER)
        expect(page.locator(".sent")).to_have_text("One")
        page.locator("#text").focus()
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Two")
        assert len(sent.value.post_data_json["messages"]) == 3
        wait_for_answers(page, 2)
        page.locator("#new").click()
        expect(page.locator(".answer")).to_have_count(0)
        ask(page, "Other")
        wait_for_answers(page)
        expect(page.locator("#list .pick")).to_have_text(["Other", "One"])
        page.locator("#list .pick").last.click()
        expect(page.locator(".sent")).to_have_text(["One", "Two"])
        page.get_by_role("button", name="Delete One").click()
        expect(page.locator("#list .pick")).to_have_text(["Other"])
        expect(page.locator(".sent")).to_have_count(0)
        page.locator("#clear").click()  # asks
        expect(page.locator("#list .pick")).to_have_count(1)
        page.locator("#clear").click()
        expect(page.locator("#list .pick")).to_have_count(0)
        assert "One" not in page.evaluate("JSON.stringify(localStorage)")


def test_conversations_are_exported_as_training_reads_them(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        ask(page, "One")
        wait_for_answers(page)
        with page.expect_download() as loading:
            page.locator("#export").click()
        (line,) = Path(loading.value.path()).read_text().splitlines()
        assert json.loads(line) == {
            "messages": [
                {"role": "user", "content": "One"},
                {"role": "assistant", "content": ANSWER},
            ]
        }
        with page.expect_download() as loading:
            page.get_by_role("button", name="Export One").click()
        assert loading.value.suggested_filename == "One.json"


def test_a_message_is_edited_and_an_answer_made_again(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        for count, text in enumerate(("One", "Two"), 1):
            ask(page, text)
            wait_for_answers(page, count)
        page.locator(".asked").first.hover()
        page.get_by_role("button", name="Edit this message").first.click()
        expect(page.locator(".writing small")).to_contain_text("are removed")
        page.keyboard.press("Control+A")
        page.keyboard.type("Three")
        with page.expect_request("**/chat/completions") as sent:
            page.keyboard.press("Control+Enter")
        assert sent.value.post_data_json["messages"] == [{"role": "user", "content": "Three"}]
        wait_for_answers(page, 1)
        with page.expect_request("**/chat/completions") as sent:
            page.get_by_role("button", name="Ask bank again").click()
        assert sent.value.post_data_json["messages"] == [{"role": "user", "content": "Three"}]
        wait_for_answers(page, 1)
        page.locator("#text").focus()
        page.keyboard.press("ArrowUp")  # the last message, by keyboard
        expect(page.locator(".writing textarea")).to_have_value("Three")
        page.keyboard.press("Escape")
        expect(page.locator(".sent")).to_have_text("Three")


def test_markdown_becomes_elements_and_nothing_runs(chat: Chat, open_page: Any) -> None:
    with served(Site(chat, answer=MARKDOWN, longest=900).app) as url:
        page = open_page(url)
        ask(page, "Hello")
        wait_for_answers(page)
        text = page.locator(".answer .text")
        expect(text.locator("h3")).to_have_text("Rates")
        expect(text.locator("strong")).to_have_text("fixed")
        expect(text.locator("em")).to_have_text("not")
        expect(text.locator("td")).to_have_text(["12", "8.9 %"])
        expect(text.locator("ol > li > ul > li")).to_have_text("inner")
        expect(text.locator(".block code")).to_have_text('x = "<b>1</b>"  # one')
        expect(text.locator(".code-string")).to_have_text('"<b>1</b>"')
        expect(text.locator("blockquote")).to_contain_text("<img src=x")
        addresses = [one.get_attribute("href") for one in text.locator("a").all()]
        assert addresses == ["https://bank.example/a", "https://bank.example/p.png"]
        assert "noopener" in (text.locator("a").first.get_attribute("rel") or "")
        assert text.locator("img, b, script").count() == 0
        assert page.evaluate("window.ran") is None


def test_every_setting_is_sent(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        settings(
            page, system="Be short.", temperature="0.3", top_p="0.9", top_k="5", min_p="0.1",
            max_tokens="40", min_tokens="2", frequency_penalty="0.5", presence_penalty="-0.5",
            repetition_penalty="1.1", seed="7", stop_strings="END|###",
        )  # fmt: skip
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Hello")
        body = sent.value.post_data_json
        expected = {
            "temperature": 0.3, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 40,
            "min_tokens": 2, "frequency_penalty": 0.5, "presence_penalty": -0.5,
            "repetition_penalty": 1.1, "seed": 7, "stop": ["END", "###"],
        }  # fmt: skip
        assert {name: body[name] for name in expected} == expected
        wait_for_answers(page)
        assert page.locator(".problem").count() == 0


def test_a_wrong_setting_is_said_and_not_taken(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        expect(page.locator("#title")).to_have_text("bank")
        page.locator("#open").click()
        page.locator("#temperature").fill("9")
        page.locator("#done").click()
        expect(page.locator("#note")).to_contain_text("Temperature")
        page.locator("#temperature").fill("1")
        page.locator("#forms summary").click()
        page.locator("#schema").fill("{")
        page.locator("#done").click()
        expect(page.locator("#note")).to_contain_text("JSON schema is not valid JSON")
        page.locator("#schema").fill('{"type": "object"}')
        page.locator("#done").click()
        expect(page.locator("#settings")).not_to_be_visible()
        with page.expect_request("**/chat/completions") as sent:
            ask(page, "Hello")
        schema = sent.value.post_data_json["response_format"]["json_schema"]["schema"]
        assert schema == {"type": "object"}


def test_tools_are_shown_and_their_results_go_back(tmp_path: Path, open_page: Any) -> None:
    chat = tool_chat(tmp_path, "hermes")
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    with served(Site(chat, answer=call, longest=800).app) as url:
        page = open_page(url)
        expect(page.locator("#title")).to_have_text("bank")
        page.locator("#open").click()
        page.locator("#forms summary").click()
        tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
        page.locator("#tools").fill(json.dumps([tool]))
        page.locator("#done").click()
        ask(page, "Weather?")
        wait_for_answers(page)
        expect(page.locator(".call strong")).to_have_text("calls weather")
        expect(page.locator(".call pre")).to_contain_text('"city": "Bern"')
        page.get_by_label("Result of weather").fill("sunny")
        with page.expect_request("**/chat/completions") as sent:
            page.keyboard.press("Enter")
        last = sent.value.post_data_json["messages"][-2:]
        assert last[0]["tool_calls"][0]["function"]["name"] == "weather"
        assert (last[1]["role"], last[1]["content"]) == ("tool", "sunny")
        assert last[1]["tool_call_id"] == last[0]["tool_calls"][0]["id"]
        wait_for_answers(page, 2)


def test_probabilities_are_shown_by_mouse_and_by_keyboard(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        expect(page.locator("#title")).to_have_text("bank")
        page.locator("#open").click()
        page.get_by_label("Ask for the probability").check()
        page.locator("#done").click()
        ask(page, "Hello")
        wait_for_answers(page)
        page.get_by_role("button", name="Show the probabilities").click()
        assert page.locator(".tokens").inner_text() == ANSWER  # € is of several tokens
        page.locator(".tokens span").first.hover()
        expect(page.locator("#tip .chosen")).to_contain_text("%")
        page.mouse.move(0, 0)
        expect(page.locator("#tip")).not_to_be_visible()
        page.locator(".tokens").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#tip")).to_be_visible()
        expect(page.locator("#say")).to_contain_text("%")
        page.get_by_role("button", name="Show the probabilities").click()
        expect(page.locator(".tokens")).to_have_count(0)


def test_the_request_is_shown_as_code_that_runs(chat: Chat, open_page: Any) -> None:
    with served(Site(chat).app) as url:
        page = open_page(url)
        settings(page, temperature="0.5", top_k="5")
        page.locator("#text").fill('It\'s $5 "today"')
        page.locator("#code").click()
        curl = page.locator("#code-text").inner_text()
        page.locator("#as-python").click()
        python = page.locator("#code-text").inner_text()
    assert "curl -N" in curl
    body = curl.partition("-d '")[2].rstrip().removesuffix("'").replace("'\\''", "'")
    assert json.loads(body)["messages"] == [{"role": "user", "content": 'It\'s $5 "today"'}]
    asked: dict[str, Any] = {}

    class Client:
        """In the place of openai's."""

        def __init__(self, **given: Any) -> None:
            asked.update(given)
            self.chat = self.completions = self

        def create(self, **given: Any) -> list[Any]:
            asked.update(given)
            return []

    exec(python.replace("from openai import OpenAI", ""), {"OpenAI": Client})
    assert asked["base_url"] == f"{url}v1"
    assert (asked["temperature"], asked["extra_body"]) == (0.5, {"top_k": 5})


def test_ratings_and_corrections_are_recorded_with_consent(
    chat: Chat, open_page: Any, tmp_path: Path
) -> None:
    feedback = Feedback(tmp_path)
    with served(Site(chat, feedback=feedback).app) as url:
        page = open_page(url)
        ask(page, "Hello")
        wait_for_answers(page)
        page.get_by_role("button", name="Good reply of bank").click()
        expect(page.locator("#note")).to_contain_text("allow that first")
        expect(page.locator("#consent")).to_be_focused()
        page.locator("#consent").check()
        page.locator("#done").click()
        page.get_by_role("button", name="Good reply of bank").click()
        expect(page.locator(".numbers")).to_contain_text("rating is recorded")
        good = page.get_by_role("button", name="Good reply of bank")
        expect(good).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Correct the reply").click()
        page.locator(".writing textarea").fill("It costs 25 €.")
        page.get_by_role("button", name="Send the correction").click()
        expect(page.locator(".numbers")).to_contain_text("correction is recorded")
    feedback.close()
    (labels,), (pairs,) = ((tmp_path / kind).glob("*.jsonl") for kind in ("labels", "pairs"))
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    assert [row["label"] for row in rows] == [True, False]
    pair = json.loads(pairs.read_text())
    assert (pair["chosen"], pair["rejected"]) == ("It costs 25 €.", ANSWER)
    assert pair["messages"] == [{"role": "user", "content": "Hello"}]


def test_two_models_are_compared_blind_and_the_vote_counts(chat: Chat, open_page: Any) -> None:
    with served(two_models(chat)) as url:
        page = open_page(url)
        expect(page.locator("#title")).to_have_text("tuned")
        page.get_by_label("Compare with").select_option("base")
        page.locator("#open").click()
        page.get_by_label("Compare blind").check()
        page.locator("#done").click()
        page.locator("#text").focus()
        ask(page, "Who are you?")
        wait_for_answers(page, 2)
        assert page.locator(".answer .who").all_inner_texts() == ["A", "B"]
        assert not [
            one for one in page.locator(".answer").all()
            if "tuned" in (one.get_attribute("aria-label") or "")
        ]  # fmt: skip
        left = page.locator(".answer .text").first.inner_text()
        page.get_by_role("button", name="A is better").click()
        names = page.locator(".answer .who").all_inner_texts()
        assert sorted(names) == ["base", "tuned"]
        assert names[0] in left
        expect(page.locator(".answer").first).to_have_class("answer won")
        expect(page.locator(".vote")).to_contain_text(f"{names[0]} 1")
        page.reload()
        expect(page.locator(".vote")).to_contain_text(f"{names[0]} 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_axe_finds_nothing(
    chat: Chat, open_page: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    if not AXE.is_file():
        pytest.fail("axe-core is missing: npm ci --prefix tests/browser")
    site = Site(chat, answer=MARKDOWN, longest=900, feedback=Feedback(tmp_path))
    with served(site.app) as url:
        page = open_page(url, width=width, color_scheme=scheme)
        expect(page.locator("#state")).to_have_text("ready")

        def check() -> None:
            page.evaluate(AXE.read_text())
            found = page.evaluate("axe.run()")["violations"]
            assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found] == []

        check()
        page.locator("#open").click()
        page.locator("#forms summary").click()
        page.get_by_label("Ask for the probability").check()
        check()
        page.locator("#done").click()
        page.locator("#text").focus()
        ask(page, "Hello")
        wait_for_answers(page)
        check()
        page.get_by_role("button", name="Show the probabilities").click()
        check()
        page.locator("#code").click()
        check()
        page.keyboard.press("Escape")
        if width < 1000:
            page.locator("#menu").click()
            check()
