"""Guided decoding: answers that match a JSON schema, a pattern or a grammar.

llguidance (https://github.com/guidance-ai/llguidance) computes which tokens may come next.
"""

import json
import re
import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import Guide
from pipeline.engines.batching.guide_errors import Unusable, plain

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions
    from numpy.typing import NDArray

    from pipeline.models.chat.renderer import Chat

KEPT_GUIDES = 32
# Compact: with free white space a small model can write line breaks until its answer is cut.
JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_flexible": False}
# Where a schema has options of its own.
OPTIONS_KEY = "x-guidance"


def json_options(whitespace: int) -> "JsonCompileOptions":
    """Options of JSON that may have so many characters of white space at each gap."""
    if whitespace == 0:
        return JSON_OPTIONS
    return {"whitespace_pattern": rf"[ \t\n]{{0,{whitespace}}}"}


def with_options(schema: dict[str, Any], whitespace: int) -> dict[str, Any]:
    """The schema with our options in place of any that it brings."""
    return {**schema, OPTIONS_KEY: json_options(whitespace)}


def tokens_of(chat: "Chat") -> "LLTokenizer":
    """A model's tokens in llguidance's form; takes about a second for a large vocabulary."""
    import llguidance

    return llguidance.LLTokenizer(chat.tokenizer.to_str(), eos_token=chat.stop_ids)


class Guides:
    """Guided decoding for one model; the last guides are kept ready."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._ready: OrderedDict[Guide, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        return tokens_of(self._chat)

    def begin(self, guide: Guide) -> "Matching":
        """The matcher of one answer; the first one of a large schema takes a second.

        Raises:
            ValueError: the guide is not valid, or uses something unsupported; says what.
        """
        with self._lock:
            matcher = self._ready.pop(guide, None) or compile_guide(self._tokens, guide)
            self._ready[guide] = matcher
            while len(self._ready) > KEPT_GUIDES:
                self._ready.popitem(last=False)
            return Matching(matcher.deep_copy(), self._tokens.vocab_size, guide.kind)


def compile_guide(tokens: "LLTokenizer", guide: Guide) -> "LLMatcher":
    """
    Raises:
        Unusable: the guide is not valid, or uses something unsupported; says what.
    """
    import llguidance

    matcher = llguidance.LLMatcher(tokens, grammar_of(guide), log_level=0)
    if matcher.is_error():
        raise Unusable(plain(guide.kind, matcher.get_error()))
    return matcher


class Matching:
    """The state of guided decoding in one answer.

    Args:
        vocab_size: tokens that the matcher knows.
        kind: the guide's, for messages.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int, kind: str) -> None:
        from llguidance import numpy as masks

        self._masks: Any = masks
        self._matcher, self._kind = matcher, kind
        self._bits = masks.allocate_token_bitmask(1, vocab_size)

    def mask(self, logits: "NDArray[np.float32]") -> None:
        """Set the logits [vocabulary] of tokens that are not allowed next to minus infinity.

        Raises:
            Unusable: nothing is allowed, or the guide has become too complex.
        """
        self._masks.fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise Unusable(plain(self._kind, self._matcher.get_error()))
        self._masks.apply_token_bitmask_inplace(logits, self._bits)

    def accept(self, token: int) -> None:
        """Advance by the chosen token, which the mask allowed."""
        self._matcher.consume_token(token)


def grammar_of(guide: Guide) -> str:
    """The grammar of a guide, for llguidance.

    Raises:
        Unusable: a schema is not JSON, or is nested too deeply.
    """
    from llguidance import LLMatcher

    if guide.kind == "json_object":
        schema: Any = {"type": "object"}
    elif guide.kind == "json_schema":
        try:
            schema = json.loads(guide.text)
        except RecursionError:
            raise Unusable("the schema is nested too deeply") from None
        except ValueError as error:
            raise Unusable(f"the schema is not valid JSON: {error}") from None
        if not isinstance(schema, dict):
            raise Unusable("the schema must be a JSON object")
    elif guide.kind == "regex":
        return LLMatcher.grammar_from_regex(guide.text)
    else:
        return LLMatcher.grammar_from_lark(guide.text)
    return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_OPTIONS)


def lark_of(text: str) -> str:
    """A grammar in Lark's notation, from one in that or in GBNF.

    Raises:
        Unusable: it is neither.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except RecursionError:
        raise Unusable("the grammar is nested too deeply") from None
    except Exception as error:  # the converter raises no narrower type
        found = re.search(r"at line (\d+)", str(error))
        place = f" (line {found[1]})" if found else ""
        raise Unusable(f"this is not a grammar in Lark or GBNF notation{place}") from None
