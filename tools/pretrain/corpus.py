"""A tokenizer and token rows from a generator of text, for a model that starts from nothing.

The generator is a Python file with `sentences(seed)` and `conversations(seed)`, endless iterators
of paragraphs and of OpenAI messages. Knows nothing of training.
"""

import importlib.util
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat
from pipeline.training.batches import TokenRows
from tools.pretrain.rare_tokens import rare_documents

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# The corpus is made in this many parts, whatever the number of processes, so that it is the same.
PARTS = 16
TOKENIZER_TEXTS = 40_000  # paragraphs, and as many conversations, to learn the vocabulary from


def load_generator(file: Path) -> ModuleType:
    """The generator's module.

    Raises:
        DataError: the file is missing or lacks one of the two functions.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing: name the generator with --generator")
    spec = importlib.util.spec_from_file_location("generator", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("sentences", "conversations"):
        if not hasattr(module, name):
            raise DataError(f"{file} has no function {name}(seed): write it, or name another file")
    return module


def train_tokenizer(generator: ModuleType, folder: Path, *, vocabulary: int, seed: int) -> None:
    """Learn a byte-level BPE vocabulary, and write it with a chat template as an HF tokenizer.

    Digits stay single, so that a number is copied digit by digit.

    Raises:
        DataError: the text has too few different words for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [BOS, END, PAD, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(generator, seed), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise DataError(
            f"the generator's text gives a vocabulary of {tokenizer.get_vocab_size()}, not "
            f"{vocabulary}: lower --vocabulary"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _texts(generator: ModuleType, seed: int) -> Iterator[str]:
    yield from islice(generator.sentences(seed), TOKENIZER_TEXTS)
    for messages in islice(generator.conversations(seed), TOKENIZER_TEXTS):
        yield from (message["content"] for message in messages)


@dataclass(frozen=True)
class Part:
    """One part of the corpus: which generator, tokenizer and seed, and how much of it."""

    generator: Path
    tokenizer: Path
    seed: int
    tokens: int
    conversation_share: float


def make_rows(
    part: Part, *, length: int, parts: int = PARTS, least_occurrences: int = 0
) -> TokenRows:
    """`parts` corpora like `part`, each with a seed of its own, as rows of `length` + 1 tokens.

    Documents (a beginning-of-text token and a paragraph) and rendered conversations follow one
    another and are cut wherever a row is full. Every token is trained on. Further documents follow
    for the tokens that occur less often than `least_occurrences`.
    """
    pieces = [replace(part, seed=part.seed * parts + i) for i in range(parts)]
    # Spawned, not forked: this process may have threads by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(parts, os.cpu_count() or 1), mp_context=context) as pool:
        ids = np.concatenate(list(pool.map(part_ids, pieces)))
    chat = Chat.load(part.tokenizer)
    bos = chat.tokenizer.token_to_id(BOS)
    rare = rare_documents(chat, ids, least=least_occurrences, seed=part.seed)
    ids = np.concatenate([ids, *(np.asarray([bos, *text], np.int32) for text in rare)])
    rows = len(ids) // (length + 1)
    ids = ids[: rows * (length + 1)]
    starts = np.arange(rows + 1, dtype=np.int64) * (length + 1)
    return TokenRows(ids, np.ones(len(ids), dtype=np.int8), starts)


def part_ids(part: Part) -> Any:
    """Token ids of a part: at least part.tokens, int32; documents and conversations by share."""
    generator, chat = load_generator(part.generator), Chat.load(part.tokenizer)
    bos = chat.tokenizer.token_to_id(BOS)
    paragraphs, conversations = generator.sentences(part.seed), generator.conversations(part.seed)
    pieces: list[list[int]] = []
    spoken = total = 0
    while total < part.tokens:
        if spoken < part.conversation_share * (total + 1):
            ids = chat.render(next(conversations)).ids
            spoken += len(ids)
        else:
            ids = [bos, *chat.tokenizer.encode(next(paragraphs), add_special_tokens=False).ids]
        pieces.append(ids)
        total += len(ids)
    return np.concatenate([np.asarray(p, dtype=np.int32) for p in pieces])
