"""Personal data is masked in every place of a row, counted by kind, and shown nowhere."""

from collections import Counter
from typing import Any

import pytest

from pipeline.config.prepare import PII, PrepareConfig
from pipeline.core.errors import MissingRuntime
from pipeline.core.extras import EXTRAS, Extra
from pipeline.data import pii
from pipeline.data.pii import Masker
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.messages import Message
from pipeline.models.chat.tool_calls import function_call
from pipeline.orchestration.compose import compose

EXAMPLES = {
    "EMAIL_ADDRESS": "ann.lee@example.org",
    "PHONE_NUMBER": "+1 212-456-7890",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN_CODE": "DE89370400440532013000",
    "IP_ADDRESS": "192.168.10.17",
    "CRYPTO": "1BoatSLRHtKNngkdXEeobR76b53LETtpyT",
    "US_SSN": "078-05-1121",
    "UK_NHS": "943 476 5919",
    "ES_NIF": "12345678Z",
    "IT_FISCAL_CODE": "RSSMRA85T10A562S",
}


@pytest.fixture(scope="module")
def masker() -> Masker:
    pytest.importorskip("presidio_analyzer", reason="make setup EXTRA=pii")
    return Masker(["all"])


def row(content: str, answer: str = "Done.", **more: Any) -> Conversation:
    turns: list[Message] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer},
    ]
    return Conversation("a.jsonl", 1, turns, f"prompt: {content}", **more)


@pytest.mark.parametrize("kind", PII)
def test_each_kind_is_found(masker: Masker, kind: str) -> None:
    found = Counter[str]()
    alone = Masker([kind])
    assert alone.text(f"It is {EXAMPLES[kind]}, as I said.", found) == f"It is <{kind}>, as I said."
    assert found == {kind: 1}


def test_other_numbers_stay(masker: Masker) -> None:
    text = "In 2024, 3,500 of 12 branches at 10.5 % opened at 9:30; call extension 210."
    assert masker.text(text, Counter()) == text


def test_every_place_of_a_row_is_masked(masker: Masker) -> None:
    secret = EXAMPLES["EMAIL_ADDRESS"]
    call: Any = {
        "role": "assistant",
        "content": "",
        "tool_calls": [function_call("mail", {"to": [secret], "n": 3}, "a1")],
    }
    given = row(f"Write to {secret}", f"Sent to {secret}.", rejected=[call])
    given.messages.insert(1, call)
    found = Counter[str]()
    masked = masker.row(given, found)
    assert secret not in repr(masked)
    assert found == {"EMAIL_ADDRESS": 4}
    assert isinstance(masked, Conversation)
    assert masked.messages[2]["content"] == "Sent to <EMAIL_ADDRESS>."
    assert secret in repr(given)  # which is left as it was


def test_half_a_secret_at_the_end_of_an_excerpt_is_not_shown(masker: Masker) -> None:
    rejected = Rejected("a.jsonl", 1, "bad JSON", "near ann.lee@example.org", "ask ann.lee@exam…")
    masked = masker.row(rejected, Counter())
    assert (masked.excerpt, getattr(masked, "detail", "")) == ("ask …", "near <EMAIL_ADDRESS>")


def test_a_number_in_a_call_is_refused(masker: Masker) -> None:
    call: Any = {
        "role": "assistant",
        "content": "",
        "tool_calls": [function_call("pay", {"card": 4111111111111111}, "a1")],
    }
    given = row("Pay.", rejected=[call])
    masked = masker.row(given, Counter())
    assert isinstance(masked, Rejected)
    assert masked.reason == pii.UNMASKABLE
    assert "4111" not in repr(masked)


def test_an_unknown_kind_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = compose([])["prepare"] | {"max_length": 64}
    with pytest.raises(ValueError, match="choose from EMAIL_ADDRESS, "):
        PrepareConfig.model_validate({**settings, "mask_pii": ["NAME"]})
    monkeypatch.setitem(EXTRAS, "pii", Extra("pii", "", ("no-such-package",), 1))
    with pytest.raises(MissingRuntime, match=r"prepare.mask_pii needs no-such-package.*EXTRA=pii"):
        Masker(["all"])
