"""The text side of a model's folder: its tokenizer, chat template and special tokens.

Reads them as transformers does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from pipeline.core.errors import DataError
from pipeline.models.config_forms import extra_tokens
from pipeline.models.files import read_json as read_object

# Files about text in a model's folder.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The Jinja text of the chat template: of chat_template.jinja, else of tokenizer_config.json,
    else of chat_template.json.

    The first two in transformers' order. Those who publish a processor put it into the third.

    Raises:
        DataError: there is none, there are several and none is the default one, or it is not UTF-8.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 ({error}): save it as such") from error
    template = config.get("chat_template")
    file = folder / "chat_template.json"
    if not template and file.is_file():
        template = read_json(file).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        if named and "default" not in named:
            raise DataError(
                f"{folder / 'tokenizer_config.json'} has chat templates named "
                f"{', '.join(map(str, named))}, and none named default: put the one to use into "
                "chat_template.jinja there"
            )
        template = named.get("default")
    if not isinstance(template, str) or not template:
        raise DataError(
            f"{folder} has no chat template, so nothing says how to write a conversation for this "
            "model: use its instruct version, or put a template into chat_template.jinja there"
        )
    return template


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, str]
) -> Tokenizer:
    """The tokenizer as transformers sets it up, so that ids agree.

    Args:
        config: tokenizer_config.json; special: bos_token, eos_token … by name.

    Raises:
        DataError: the file is missing or broken, or the configuration declares no valid tokens.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"{folder} has no tokenizer.json: use a model folder with one, or create it there with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except BaseException as error:  # the library raises a bare Exception, and panics as another
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(f"{file} is not a tokenizer ({error}): download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # It could only add special tokens, which the template does, and trim white space off offsets.
    tokenizer.post_processor = None
    try:
        _add_tokens(tokenizer, config, special)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'tokenizer_config.json'} declares tokens that cannot be read ({error!r}): "
            "download it again"
        ) from error
    if hasattr(tokenizer.pre_tokenizer, "add_prefix_space"):
        tokenizer.pre_tokenizer.add_prefix_space = bool(config.get("add_prefix_space", False))
    return tokenizer


def _add_tokens(
    tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Add the tokens that only tokenizer_config.json declares."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder", {})
    tokens = [AddedToken(**declared[number]) for number in sorted(declared, key=int)]
    names = [*special.values(), *map(text_of, extra_tokens(config))]
    tokens += [AddedToken(name, special=True) for name in names]
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def text_of(token: object) -> str:
    """The text of a special token, which files hold as a string or as an object.

    Raises:
        TypeError: it is neither.
    """
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"{token!r} is not a token")
    return text


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of bos_token, eos_token … by name, where the model has them.

    Raises:
        DataError: one is neither a text nor an object with one.
    """
    special = {}
    for name in SPECIAL:
        if config.get(name):
            try:
                special[name] = text_of(config[name])
            except TypeError as error:
                raise DataError(
                    f"{folder / 'tokenizer_config.json'}: {name} cannot be read ({error}): write "
                    "its text"
                ) from error
    return special


def read_json(file: Path, *, required: bool = True) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing and not required.

    Raises:
        DataError: it is missing, or does not hold a JSON object.
    """
    if not required and not file.exists():
        return {}
    return read_object(file, "use a model folder with its tokenizer files")
