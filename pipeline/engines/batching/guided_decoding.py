"""Guided decoding: answers that match a JSON schema, a pattern or a grammar.

llguidance (https://github.com/guidance-ai/llguidance) computes which tokens may come next.
"""

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import Guide
from pipeline.models.chat.renderer import Chat

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions
    from numpy.typing import NDArray

# As much white space in JSON as people write. Without a bound a small model can generate line
# breaks until its answer is cut.
JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"[ \t\n]{0,20}"}


def tokens_of(chat: Chat) -> "LLTokenizer":
    """A model's tokens in llguidance's form; takes about a second for a large vocabulary."""
    import llguidance

    return llguidance.LLTokenizer(chat.tokenizer.to_str(), eos_token=chat.stop_ids)


class Guides:
    """Guided decoding for one model."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        return tokens_of(self._chat)

    def begin(self, guide: Guide) -> "Matching":
        """The matcher of one answer; a large schema takes a second.

        Raises:
            ValueError: the guide is not valid, or uses something unsupported; says what.
        """
        import llguidance

        matcher = llguidance.LLMatcher(self._tokens, grammar_of(guide), log_level=0)
        if matcher.is_error():
            raise ValueError(_reason(matcher))
        return Matching(matcher, self._tokens.vocab_size)


class Matching:
    """The state of guided decoding in one answer.

    Args:
        vocab_size: tokens that the matcher knows.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        from llguidance import numpy as masks

        self._masks: Any = masks
        self._matcher = matcher
        self._bits = masks.allocate_token_bitmask(1, vocab_size)

    def mask(self, logits: "NDArray[np.float32]") -> None:
        """Set the logits [vocabulary] of tokens that are not allowed next to minus infinity.

        Raises:
            ValueError: the guide has become too complex.
        """
        self._masks.fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise ValueError(_reason(self._matcher))
        self._masks.apply_token_bitmask_inplace(logits, self._bits)

    def accept(self, token: int) -> None:
        """Advance by the chosen token, which the mask allowed."""
        self._matcher.consume_token(token)


def grammar_of(guide: Guide) -> str:
    """The grammar of a guide, for llguidance.

    Raises:
        ValueError: a schema is not JSON, or is nested too deeply.
    """
    from llguidance import LLMatcher

    if guide.kind == "json_object":
        schema: Any = {"type": "object"}
    elif guide.kind == "json_schema":
        try:
            schema = json.loads(guide.text)
        except RecursionError:
            raise ValueError("the schema is nested too deeply") from None
    elif guide.kind == "regex":
        return LLMatcher.grammar_from_regex(guide.text)
    else:
        return LLMatcher.grammar_from_lark(guide.text)
    return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_OPTIONS)


def _reason(matcher: "LLMatcher") -> str:
    """The library's message, without the backtrace of a crash."""
    error = matcher.get_error().partition("<backtrace>")[0]
    return f"guided decoding is not possible: {' '.join(error.split())[:300]}"
