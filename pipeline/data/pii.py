"""Personal data in rows, found by Presidio's recognizers and masked before anything else sees it.

    write to ann@example.org        →   write to <EMAIL_ADDRESS>

Presidio's patterns and checksums are used (of cards, IBANs, national numbers), and no language
model: names and addresses of people are not found. Nothing is fetched, and what is found is counted
by its kind and never kept.
"""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.prepare import ALL_PII, PII
from pipeline.core.extras import require
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.messages import Message, Unusable

_LEAST = 0.4  # of Presidio's score: what is found without a word beside it that says what it is
UNMASKABLE = "personal data in a tool call"
_NUMBER = (
    "an argument of a call holds it as a number, which cannot be masked: write it as text, or "
    "leave the row out"
)
# Fields of a turn that say what it is, not what it tells.
_NAMES = ("role", "name", "id", "tool_call_id", "type")


@dataclass
class Masker:
    """Masks personal data.

    kinds: as prepare.mask_pii names them.

    Raises:
        MissingRuntime: the extra `pii` is not installed.
    """

    kinds: Collection[str]
    _recognizers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        require("pii", "prepare.mask_pii", "set prepare.mask_pii=[]")
        import tldextract
        from presidio_analyzer import predefined_recognizers

        # Use the list of domains that it brings along: by default it would fetch a newer one.
        tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
        wanted = PII if ALL_PII in self.kinds else {kind: PII[kind] for kind in self.kinds}
        self._recognizers = [getattr(predefined_recognizers, n)() for n in wanted.values()]

    def text(self, text: str, found: Counter[str]) -> str:
        """The text with a mask in the place of each find, which is counted."""
        hits = []
        for recognizer in self._recognizers:
            kinds = recognizer.supported_entities
            for hit in recognizer.analyze(text, kinds, None) or ():
                if hit.score >= _LEAST:
                    hits.append((-hit.score, hit.start - hit.end, hit.start, hit.end,
                                 hit.entity_type))  # fmt: skip
        taken: list[tuple[int, int, str]] = []
        for _, _, start, end, kind in sorted(hits):  # the surest first, then the longest
            if all(end <= begin or start >= stop for begin, stop, _ in taken):
                taken.append((start, end, kind))
        for start, end, kind in sorted(taken, reverse=True):
            text = f"{text[:start]}<{kind}>{text[end:]}"
            found[kind] += 1
        return text

    def row(self, row: Conversation | Rejected, found: Counter[str]) -> Conversation | Rejected:
        """The row without personal data, also in what is shown of it."""
        # The last word of an excerpt may be the half of an address.
        excerpt = row.excerpt
        if excerpt.endswith("…"):
            excerpt = excerpt.rpartition(" ")[0] + " …"
        excerpt = self.text(excerpt, Counter())
        if isinstance(row, Rejected):
            return replace(row, excerpt=excerpt, detail=self.text(row.detail, Counter()))
        try:
            messages = [self._turn(turn, found) for turn in row.messages]
            rejected = row.rejected and [self._turn(turn, found) for turn in row.rejected]
        except Unusable as error:
            return replace(row, excerpt=excerpt).reject(error)
        return replace(row, messages=messages, rejected=rejected, excerpt=excerpt)

    def _turn(self, turn: Message, found: Counter[str]) -> Message:
        masked: Any = self._inside(turn, found)
        return masked

    def _inside(self, value: Any, found: Counter[str], key: str = "") -> Any:
        if isinstance(value, str):
            masked = self.text(value, found)
            if key == "arguments" and masked != value:
                _check_json(masked)
            return masked
        if isinstance(value, int | float) and self.text(str(value), Counter()) != str(value):
            raise Unusable(UNMASKABLE, _NUMBER, "tool_calls")
        if isinstance(value, list):
            return [self._inside(part, found) for part in value]
        if isinstance(value, dict):
            return {
                name: part if name in _NAMES else self._inside(part, found, name)
                for name, part in value.items()
            }
        return value


def _check_json(arguments: str) -> None:
    """A number that was masked is no JSON any more."""
    try:
        json.loads(arguments)
    except ValueError as error:
        raise Unusable(UNMASKABLE, _NUMBER, "tool_calls") from error
