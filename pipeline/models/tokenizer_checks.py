"""Whether the tokenizer files of a model folder can be used, and agree with one another.

The files are a stranger's, and the library that reads tokenizer.json is native code: some files
end the process, run for minutes or fill the memory. So what can be read is checked first, and the
library then tries the tokenizer in a process of its own, with limits.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.models.architecture import Json, Shape, check_no_code
from pipeline.models.files import CONFIGS, read_json

SAVE = "save it with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
MOST_ADDED_TOKENS = 20_000  # each takes time at every start; published models have up to 7,000
LONGEST_TOKEN = 1_000  # characters of an added token
LARGEST_GROWTH = 64  # how many times as long a normalizer may make a text of as many characters
CPU_SECONDS = 30  # that loading and trying a tokenizer may take; a large one takes 3
MEMORY = 4 * 2**30  # bytes, likewise; a large one takes 0.6 GiB
WALL_SECONDS = 600  # in case the process waits for something; no verdict about the file
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TRIAL = "pipeline.models.chat.tokenizer_trial"


def check_tokenizer(folder: Path, shape: Shape) -> None:
    """Refuse tokenizer files that cannot be used with a model of this shape.

    Raises:
        DataError: names the file, what is wrong with it and how to fix it.
    """
    file, options_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer, options = read_json(file, SAVE), read_json(options_file, SAVE)
    check_no_code(options_file, options)
    ids = _token_ids(file, tokenizer)
    if not ids:
        raise DataError(f"{file} has an empty vocabulary: {SAVE}")
    token, top = max(ids.items(), key=lambda item: item[1])
    if top >= shape.vocab:
        raise DataError(_beyond(file, token, top, shape.vocab))
    _check_behaviour(file, tokenizer)
    for name in SPECIAL:
        text = _text(options.get(name))
        if text is not None and not (isinstance(text, str) and text in ids):
            raise DataError(
                f"{options_file}: {name} {text!r} is not in tokenizer.json: correct either file"
            )
    _check_special_tokens_map(folder, options)
    declared = dict(_declared(folder, options))
    if len(declared) > MOST_ADDED_TOKENS:
        raise DataError(_too_many(options_file, len(declared)))
    for config_name in CONFIGS:
        _check_special_ids(folder / config_name, shape.vocab)
    beside = [name for name in TEMPLATE_FILES if (folder / name).is_file()]
    if not options.get("chat_template") and not beside:
        raise DataError(
            f"{options_file} has no chat_template and there is no chat_template.jinja beside it: "
            "add the model's own, or one like those in the models' documentation"
        )
    loaded = _try(folder)
    for text, (number, source) in declared.items():
        if text not in loaded and text not in ids:
            raise DataError(
                f"{source} declares token {text!r}, which tokenizer.json does not have: {SAVE}"
            )
        if loaded.get(text, ids.get(text)) != number:
            raise DataError(
                f"{source} declares token {text!r} with id {number}, but its id is "
                f"{loaded.get(text, ids.get(text))}: correct either file"
            )
    for text, number in loaded.items():
        if number >= shape.vocab:
            source = declared[text][1] if text in declared else options_file
            raise DataError(_beyond(source, text, number, shape.vocab))


def _beyond(file: Path, token: str, number: int, rows: int) -> str:
    return (
        f"{file}: token {token!r} has id {number}, but the model's embedding has {rows} "
        "rows: use the tokenizer of this model, or enlarge its embedding first"
    )


def _too_many(file: Path, count: int) -> str:
    return (
        f"{file} declares {count} added tokens, and at most {MOST_ADDED_TOKENS} are read: use the "
        "tokenizer of a published model"
    )


def _text(token: Any) -> Any:
    return token.get("content", token) if isinstance(token, dict) else token


def _token_ids(file: Path, tokenizer: Json) -> dict[str, int]:
    """Token text to id, of the model's vocabulary and the added tokens."""
    try:
        vocab = tokenizer["model"]["vocab"]
        # Unigram models hold [text, score] pairs, numbered from 0; the others text to id.
        if isinstance(vocab, list):
            ids = {pair[0]: number for number, pair in enumerate(vocab)}
        else:
            ids = dict(vocab)
        added = tokenizer.get("added_tokens") or []
        if len(added) > MOST_ADDED_TOKENS:
            raise DataError(_too_many(file, len(added)))
        ids |= {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(
            f"{file} is not a tokenizers file (no {error}): save it again with transformers"
        ) from error
    for text, number in ids.items():
        if not isinstance(text, str) or type(number) is not int or number < 0:
            raise DataError(
                f"{file}: token {text!r} has id {number!r}, which should be a whole number: {SAVE}"
            )
    for token in added:
        if len(token["content"]) > LONGEST_TOKEN:
            raise DataError(
                f"{file} has an added token of {len(token['content'])} characters, and at most "
                f"{LONGEST_TOKEN} are read: use the tokenizer of a published model"
            )
    return ids


def _check_behaviour(file: Path, tokenizer: Json) -> None:
    """Refuse what would make the same text other tokens each time, or far longer."""
    if isinstance(tokenizer["model"], dict) and tokenizer["model"].get("dropout"):
        raise DataError(
            f"{file}: the model has a dropout, so the same text would give other tokens each time: "
            'set "dropout" to null'
        )
    growth = 1.0
    for part in _parts(tokenizer.get("normalizer")):
        content, pattern = part.get("content"), part.get("pattern")
        if part.get("type") == "Prepend" and isinstance(part.get("prepend"), str):
            growth *= 1 + len(part["prepend"]) / LARGEST_GROWTH
        if part.get("type") != "Replace" or not isinstance(content, str):
            continue
        given = pattern.get("String") if isinstance(pattern, dict) else None
        shortest = len(given) if isinstance(given, str) and given else 1
        growth *= max(1.0, len(content) / shortest)
    if growth > LARGEST_GROWTH:
        raise DataError(
            f"{file}: the normalizer makes a text over {LARGEST_GROWTH} times as long: use the "
            "tokenizer of a published model"
        )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value of JSON."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_special_tokens_map(folder: Path, options: Json) -> None:
    """Refuse two answers to which token is special.

    Where tokenizer_config.json has no added_tokens_decoder, as older ones, transformers prefers
    special_tokens_map.json, and otherwise does not read it.
    """
    file = folder / "special_tokens_map.json"
    if not file.is_file() or "added_tokens_decoder" in options:
        return
    special = read_json(file, SAVE)
    for name in SPECIAL:
        ours, theirs = _text(options.get(name)), _text(special.get(name))
        if ours is not None and theirs is not None and ours != theirs:
            raise DataError(
                f"{file}: {name} is {theirs!r}, and tokenizer_config.json has {ours!r}: correct "
                "either file"
            )


def _declared(folder: Path, options: Json) -> Iterator[tuple[str, tuple[int, Path]]]:
    """Tokens that files beside tokenizer.json declare, with their ids and the file."""
    file = folder / "tokenizer_config.json"
    decoder = options.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise DataError(f"{file}: added_tokens_decoder should be an object: {SAVE}")
    for number, token in decoder.items():
        text = _text(token)
        if not str(number).isdecimal() or len(number) > 9 or not isinstance(text, str):
            raise DataError(f"{file}: added_tokens_decoder has {number!r:.40}: {SAVE}")
        yield text, (int(number), file)
    file = folder / "added_tokens.json"
    if file.is_file():
        for text, number in read_json(file, SAVE).items():
            if type(number) is not int or number < 0:
                raise DataError(f"{file}: token {text!r} has id {number!r:.40}: {SAVE}")
            yield text, (number, file)


def _check_special_ids(file: Path, rows: int) -> None:
    if not file.exists():
        return
    config = read_json(file, "save it again with transformers")
    check_no_code(file, config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is None or token == -1:  # the latter is the old way to write "none"
                continue
            if not isinstance(token, int) or isinstance(token, bool):
                raise DataError(f"{file}: {name}={token!r} should be a token's number: correct it")
            if not 0 <= token < rows:
                raise DataError(
                    f"{file}: {name}={token} is outside the embedding's {rows} rows: correct it"
                )


def _try(folder: Path) -> dict[str, int]:
    """Added tokens and their ids as loaded, after a trial of the tokenizer in its own process."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    files = [folder / name for name in names]
    stamps = tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file())
    return _trial(folder.resolve(), stamps)


@lru_cache(16)
def _trial(folder: Path, stamps: Any) -> dict[str, int]:
    file = folder / "tokenizer.json"
    use = "use the tokenizer of a published model"
    # One arena and one thread, since address space is limited.
    environment = {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
    }
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    try:
        run = subprocess.run(
            [sys.executable, "-m", TRIAL, str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{file} could not be tried within {WALL_SECONDS} s: run the command again when the "
            "machine has time"
        ) from None
    if run.returncode == 0:
        return {str(text): int(number) for text, number in json.loads(run.stdout).items()}
    if run.returncode == 3:  # a refusal of the loader's
        raise DataError(run.stdout.strip())
    said = run.stderr.strip().splitlines()
    reason = said[-1][:200] if said else f"exit {run.returncode}"
    if run.returncode == -signal.SIGXCPU:
        reason = f"it takes over {CPU_SECONDS} s"
    raise DataError(
        f"{file} cannot be used: a process that loaded it and tokenized a few texts ended "
        f"({reason}): {use}"
    )


def limit_process() -> None:
    """Limit this process's time and memory, before it reads a stranger's file."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
