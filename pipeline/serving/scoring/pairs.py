"""Two texts as one row of token ids, as the model was trained on them."""

from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.prompts import KEEP_ALL, cannot_fit, max_length


@dataclass(frozen=True)
class Cut:
    """What becomes of texts that are too long.

    pair: tokens that both keep together, special ones included; KEEP_ALL for as many as the model
        reads; None refuses longer pairs.
    second: tokens that the second text keeps at most; None for all.
    second_alone: whether only the second text is shortened; else the longer of the two.
    """

    pair: int | None = None
    second: int | None = None
    second_alone: bool = False


class Rows(NamedTuple):
    """Token ids of each pair, and of which text each token is: 0 or 1."""

    ids: list[list[int]]
    types: list[list[int]]


class Pairs:
    """Turns pairs of texts into rows.

    Args:
        tokenizer: adds the special tokens of pairs. longest: tokens of a row at most.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._special = tokenizer.num_special_tokens_to_add(True)
        self._most_characters = max_length(tokenizer, longest)

    def rows(
        self, firsts: list[str], seconds: list[str], cut: Cut, fields: tuple[str, str]
    ) -> Rows:
        """fields: the names of both in the request, for messages.

        Raises:
            ApiError: a text is empty, not valid Unicode, or longer than the model reads.
        """
        for texts, field in zip((firsts, seconds), fields, strict=True):
            if not all(texts):
                raise invalid(field, "a text is empty: leave it out")
            long = [text for text in texts if cannot_fit(text, self._most_characters)]
            if long and cut.pair is None and (field == fields[0] or cut.second is None):
                raise self._too_long(field, f"a text has {max(map(len, long))} characters")
        asked = self._longest if cut.pair in (None, KEEP_ALL) else cut.pair
        room = min(asked or 0, self._longest) - self._special
        if room < 2:
            raise invalid(
                "truncate_prompt_tokens", f"a pair needs {self._special + 2} tokens at least"
            )
        distinct = list(dict.fromkeys(firsts))  # the query of many documents is read once
        known = dict(zip(distinct, self._encoded(distinct, fields[0]), strict=True))
        rows = Rows([], [])
        for first, second in zip(firsts, self._encoded(seconds, fields[1]), strict=True):
            if cut.second:
                second.truncate(cut.second)
            row = self._joined(known[first], second, room, cut, fields[1])
            rows.ids.append(row.ids)
            rows.types.append(row.type_ids)
        return rows

    def _encoded(self, texts: list[str], field: str) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except TypeError:  # tokenizers' error for text that UTF-8 cannot encode
            raise invalid(field, "a text has half a surrogate pair: send UTF-8") from None

    def _joined(
        self, first: Encoding, second: Encoding, room: int, cut: Cut, field: str
    ) -> Encoding:
        """Both with the model's special tokens, shortened to `room` tokens without those."""
        lengths = len(first), len(second)
        if sum(lengths) > room:
            if cut.pair is None:
                raise self._too_long(field, f"a pair has {sum(lengths) + self._special} tokens")
            kept = _alone(*lengths, room) if cut.second_alone else _longest_first(*lengths, room)
            if kept[1] < 1:
                raise self._too_long("query", f"the query alone has {lengths[0]} tokens")
            first = Encoding.merge([first])  # a copy: other pairs have it whole
            first.truncate(kept[0])
            second.truncate(kept[1])
        return self._tokenizer.post_process(first, second)

    def _too_long(self, field: str, what: str) -> ApiError:
        return invalid(
            field,
            f"This model's maximum context length is {self._longest} tokens. However, {what}. "
            "Please shorten it.",
            "context_length_exceeded",
        )


def _alone(first: int, second: int, room: int) -> tuple[int, int]:
    return first, min(second, room - first)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths that tokenizers' strategy `longest_first` gives."""
    shorter, longer = min(first, second), max(first, second)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (shorter, longer) if first <= second else (longer, shorter)
