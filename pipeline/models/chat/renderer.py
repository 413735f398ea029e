"""Conversations to token ids and loss mask, and back: the one place where text becomes tokens.

Training, calibration, evaluation and serving all render here, with the model's own chat template,
so they cannot disagree. The ids are those of transformers' `apply_chat_template(tokenize=True)`:
the template alone decides about BOS, and the tokenizer adds nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.core.errors import DataError
from pipeline.models.chat.loss_mask import (
    EMPTY_THOUGHT,
    OPEN_THOUGHT,
    Conversation,
    unused_mark,
)
from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.template import ChatTemplate
from pipeline.models.chat.thoughts import answer_of, as_written
from pipeline.models.chat.tokenizer import (
    FILES,
    load_tokenizer,
    read_json,
    read_template,
    special_tokens,
)
from pipeline.models.files import copy_asset

# The smallest conversation: shows how a template ends a turn.
PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
)
_NO_THOUGHT = "\n</think>\n\n"  # the end of an empty thought behind a prompt that opens one


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    ids: token ids of the whole conversation.
    mask: 1 for each token that the assistant has to produce (its text and the token that ends its
        turn), else 0; as long as `ids`.
    """

    ids: list[int]
    mask: list[int]


class Chat:
    """The tokenizer and the chat template of a model."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, template: ChatTemplate, special: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.template = template
        self.special_tokens = special
        added = tokenizer.get_added_tokens_decoder()
        self._control_ids = {i for i, token in added.items() if token.special}
        control = [re.escape(added[i].content) for i in sorted(self._control_ids)]
        self._control = re.compile("|".join(sorted(control, key=len, reverse=True)) or r"(?!)")

    @classmethod
    def load(cls, folder: Path) -> "Chat":
        """Read the tokenizer and the chat template of an HF folder.

        Raises:
            DataError: a file is missing or broken, or there is no usable chat template.
        """
        config = read_json(folder / "tokenizer_config.json")
        fallback = read_json(folder / "special_tokens_map.json", required=False)
        merged = {**fallback, **{k: v for k, v in config.items() if v is not None}}
        special = special_tokens(folder, merged)
        template = ChatTemplate(read_template(folder, config), special, str(folder))
        chat = cls(folder, load_tokenizer(folder, merged, special), template, special)
        chat._check_on_probe()
        return chat

    def as_written(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Message]:
        """The conversation with its thoughts as this template writes them: see `thoughts`.

        Raises:
            Unusable: the template refuses it.
        """
        return as_written(
            messages, lambda part: self._expand(part, tools), has_marks=self.template.has_marks
        )

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Rendered:
        """Tokens and loss mask of a conversation.

        The whole text is tokenized once and each assistant turn's characters are mapped to tokens
        by offset. A turn starts where the generation prompt ends, which is where a served answer
        starts, and ends with the control token behind its text. A token that straddles the start
        holds text of the assistant and is trained; a control token that swallowed white space there
        is not. A turn that calls tools is trained up to its last control token. A template with
        generation blocks in each of these turns marks them itself.

        Args:
            tools: descriptions of the tools that may be called, in OpenAI's form.

        Raises:
            DataError: the template refuses the conversation, alters an assistant turn, does not end
                it or leaves out a field of a turn, or the text holds one of the model's control
                tokens.
        """
        tools = tools or None
        text = self.text(messages, tools=tools)
        ids, offsets = self._encode(text, self._opened_prompts(messages, tools, text))
        conversation = Conversation(
            template=self.template,
            expand=self._expand,
            control=self._control,
            control_ids=self._control_ids,
            folder=self.folder,
            messages=messages,
            tools=tools,
            text=text,
        )
        return Rendered(ids, conversation.loss_mask(ids, offsets))

    def render_plain(self, text: str) -> Rendered:
        """Tokens of a text that is not a conversation, with bos and eos as pretraining has them.

        The mask is 1 for every token but bos, which nothing predicts.

        Raises:
            Unusable: the text holds one of the model's control tokens, or half a surrogate pair.
        """
        self._refuse_control({"text": text})
        ends = [self.special_tokens.get(name) for name in ("bos_token", "eos_token")]
        bos, eos = (None if end is None else self.tokenizer.token_to_id(end) for end in ends)
        ids = self.encode(text)
        first, last = ([] if i is None else [i] for i in (bos, eos))
        return Rendered([*first, *ids, *last], [0] * len(first) + [1] * (len(ids) + len(last)))

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation up to where the assistant's next turn begins.

        Args:
            tools: descriptions of the tools that may be called, in OpenAI's form.

        Raises:
            DataError: as for `render`.
        """
        text = self.text(messages, generation_prompt=True, tools=tools)
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError:  # as the library has it
            raise Unusable("bad Unicode", "the conversation holds half a surrogate pair") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is. Unlike `prompt`, it lets other threads run meanwhile.

        Raises:
            DataError: half a surrogate pair is in it.
        """
        try:
            return list(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        except TypeError:  # as the library has it
            raise Unusable("bad Unicode", "the text holds half a surrogate pair") from None

    def decode(self, ids: Sequence[int], *, control_tokens: bool = False) -> str:
        """Text of token ids, without control tokens unless they are asked for."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not control_tokens))

    def answer(self, ids: Sequence[int]) -> str:
        """Text of an answer's token ids, without control tokens and without a thought before it, as
        a server shows it."""
        return answer_of(self.decode(ids), begun=self._opens_thought)

    def text(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """What the template makes of a conversation, before tokenization.

        Args:
            variables: more values for the template; only those of a prompt, not of a whole
                conversation.

        Raises:
            DataError: the template refuses it, or the text contains one of the model's control
                tokens, with which a user could write turns in another's name.
        """
        given = {f"messages[{i}]": message for i, message in enumerate(messages)}
        self._refuse_control({**given, "tools": tools, **(variables or {})})
        if generation_prompt:
            return self.template.expand(
                messages, generation_prompt=True, tools=tools, variables=variables
            )
        return self._expand(messages, tools)

    def open_text(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text, without the beginning of another turn.

        Args:
            goes_on: whether the last turn is left open, for the model to go on with it.

        Raises:
            DataError: as for `text`, or the template does not write the last turn's content.
        """
        given = {f"messages[{i}]": message for i, message in enumerate(messages)}
        self._refuse_control({**given, "tools": tools, **(variables or {})})
        if not goes_on:
            return self.template.expand(
                messages, generation_prompt=False, tools=tools, variables=variables
            )
        *before, last = messages
        mark = unused_mark(str(messages))
        marked = {**last, "content": f"{last['content']}{mark}"}
        text = self.template.expand(
            [*before, marked], generation_prompt=False, tools=tools, variables=variables
        )
        begun, found, _ = text.rpartition(mark)
        if not found:
            raise Unusable(
                "last turn not shown", "the chat template does not write the last turn's content"
            )
        return begun

    def neutralize(self, text: str) -> str:
        """The text with its control tokens broken up, so that it can be a part of a message.

        Of texts that others wrote, such as documents: what a client sends is refused instead.
        """
        while self._control.search(text):
            # A token of one character cannot be broken up.
            text = self._control.sub(lambda m: f"{m[0][0]} {m[0][1:]}" if m[0][1:] else "", text)
        return text

    def _refuse_control(self, parts: Mapping[str, Any]) -> None:
        """Refuse texts that hold a control token. parts: values of JSON, by their place."""
        for place, part in parts.items():
            for text in _texts_in(part):
                if found := self._control.search(text):
                    raise Unusable(
                        "control token in text",
                        f"{place} holds {found.group()!r}, which the model reads as structure",
                    )

    @cached_property
    def _opens_thought(self) -> bool:
        """Whether an answer begins within a thought: the generation prompt ends with <think>."""
        prompt = self.template.expand(PROBE[:1], generation_prompt=True)
        return bool(OPEN_THOUGHT.search(prompt))

    def _opened(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        """The prompt of a last assistant turn that begins within a thought; "" of another."""
        if not (messages and messages[-1]["role"] == "assistant" and self._opens_thought):
            return ""
        return self.template.expand(messages[:-1], generation_prompt=True, tools=tools)

    def _expand(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The whole conversation as text.

        Some templates open a thought in the prompt and write a given answer without one, since they
        drop thoughts of earlier turns. Then the last turn gets an empty one: the model must learn
        to go on from the prompt that is served.
        """
        text = self.template.expand(messages, generation_prompt=False, tools=tools)
        prompt = self._opened(messages, tools)
        if not prompt or text.startswith(prompt):
            return text
        opening = OPEN_THOUGHT.search(prompt)
        head = prompt[: opening.start()] if opening else prompt
        if not text.startswith(head):
            return text  # which `_assistant_spans` refuses
        line = "" if prompt.endswith("\n") else "\n"
        answer = EMPTY_THOUGHT.sub("", text[len(head) :])  # which some write themselves
        return f"{prompt}{line}{_NO_THOUGHT}{answer}"

    def _opened_prompts(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        text: str,
    ) -> list[int]:
        """Lengths of the prompts before assistant turns that begin within a thought."""
        if not self._opens_thought:
            return []
        asked = next((i for i, m in enumerate(messages) if m["role"] == "user"), len(messages))
        # A greeting has no prompt.
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > asked]
        prompts = (
            self.template.expand(messages[:turn], generation_prompt=True, tools=tools)
            for turn in turns
        )
        return [len(prompt) for prompt in prompts if text.startswith(prompt)]

    def _encode(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the characters that each stands for.

        cuts: where a part of the text ends that is served as a prompt of its own. What follows an
        open thought may be a line break, which would join the prompt's last one in one token.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for begin, end in pairwise(dict.fromkeys((0, *cuts, len(text)))):
            encoding = self.tokenizer.encode(text[begin:end], add_special_tokens=False)
            ids += encoding.ids
            found = encoding.offsets
            offsets += [(begin + a, begin + b) for a, b in found] if begin else found
        return ids, offsets

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the template's end of turn, then the model's eos tokens."""
        probe = self.render(PROBE)
        last_trained = max(i for i, trained in enumerate(probe.mask) if trained)
        stops: list[int | None] = [probe.ids[last_trained]]
        if eos := self.special_tokens.get("eos_token"):
            stops.append(self.tokenizer.token_to_id(eos))
        # As transformers does: config.json counts where there is no generation_config.json.
        file = self.folder / "generation_config.json"
        file = file if file.exists() else self.folder / "config.json"
        named = read_json(file, required=False).get("eos_token_id")
        stops += named if isinstance(named, list) else [named]
        return list(dict.fromkeys(i for i in stops if isinstance(i, int)))

    @cached_property
    def sha256(self) -> str:
        """Identity of the rendering: template, tokenizer.json and special tokens."""
        digest = hashlib.sha256(self.template.source.encode())
        digest.update((self.folder / "tokenizer.json").read_bytes())
        digest.update(json.dumps(self.special_tokens, sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """Rows that the model's embedding needs: the largest token id and one."""
        return 1 + max(int(i) for i in self.tokenizer.get_vocab(with_added_tokens=True).values())

    def tokenizer_files(self) -> list[Path]:
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]

    def save(self, folder: Path) -> None:
        """Copy the tokenizer files, so that the same rendering loads from there."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.tokenizer_files():
            copy_asset(file, folder / file.name)

    def _check_on_probe(self) -> None:
        """Refuse a template that would fail, or silently go wrong, on every conversation."""
        try:
            ids, prompt = self.render(PROBE).ids, self.prompt(PROBE[:1])
        except Unusable as error:
            raise DataError(
                f"a question and its answer cannot be written for this model: {error}: correct "
                "its template, or put another one into "
                f"{self.folder / 'chat_template.jinja'}"
            ) from error
        if ids[: len(prompt)] != prompt:
            raise DataError(
                f"the tokenizer of {self.folder} splits the end of the generation prompt into "
                "other tokens when an answer follows, so training and serving would differ: end "
                "the assistant's header in the chat template with a control token"
            )


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _texts_in(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_in(inner)
