"""Secrets: known by a name or by their form, and masked wherever text leaves the process.

A secret that a stage needs is a reference, `${oc.env:HF_TOKEN}`. It is written as it stands into
params.yaml, dvc.lock, manifests and the tracker, and is replaced by the variable's value only where
an engine or a client is opened (`expand`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.core.errors import ConfigError

MASK = "***"
# The last word of a setting, a header, a field or a variable whose value is a secret, or a list of
# them. `tokens` alone is a number, `secrets` names what a cluster keeps, and `key` is anything.
_KEYS = (
    "api|access|account|encryption|functions|master|private|secret|session|shared|signing|storage|"
    "subscription"
)
_WORDS = (
    rf"pass|passwd|passwords?|passphrases?|passcode|secret|token|bearer|(?:{_KEYS})_?keys?|"
    r"(?:access|api|auth|bearer|refresh|session)_?tokens|auth|authorization|credentials?|cookies?|"
    r"signature|sig|sas|jwt|pat|connection_?string|dsn"
)
# Not PWD, the working folder.
_NAME = re.compile(rf"(?:^|[._])(?:{_WORDS})(?:_(?:\d+|value))?$|[._]pwd$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Tokens of a vocabulary.
_NO_SECRET = re.compile(r"(?:^|[._])(?:bos|eos|pad|unk|sep|cls|mask|stop|image|audio)_token$")
_SCHEME = r"(?:(?:Bearer|Basic|Token)\s+)"
# What these look like is published by those who issue them.
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w\-]{16,}|\bgh[a-z]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w\-]{16,}|\bxox[a-z]-[\w\-]{10,}|\bAKIA[0-9A-Z]{16}\b|\bnvapi-[\w\-]{20,}"
    r"|\bAIza[\w\-]{30,}|\beyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
_AUTHORIZATION = re.compile(rf"\b({_SCHEME})(?!\$\{{)[\w\-+/=.~:]{{8,}}")
_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*):[^/\s]+@")
_LIST = r"\[[^\]\n]{1,2000}\]"
_VALUE = rf"""(?P<value>"[^"\n]*"|'[^'\n]*'|{_LIST}|{_SCHEME}?[^\s"',;&{{}}\[\]()]+)"""
_PAIRS = (
    # name=value and "name": "value". A name begins where a word does and is read once: the time of
    # a search is that of reading the text.
    re.compile(
        rf"""(?<![\w.\-])(?P<name>[\w.\-]++)(?P<between>["']?\s?=\s?|["']\s?:\s?){_VALUE}"""
    ),
    re.compile(rf"(?<![\w\-])(?P<name>--[\w\-]++)(?P<between>\s+)(?!-){_VALUE}"),
    # A line of headers or of YAML, or a header in quotes.
    re.compile(rf"(?m)(?P<name>(?:^|(?<=['\"]))[ +\-]*+[\w.\-]++)(?P<between>:[ ]+){_VALUE}"),
)
REFERENCE = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)\s*(?:,([^}]*))?\}")
_SHORTEST = 8  # of a value that is masked wherever it occurs: a shorter one may be a common word
_PLAIN = {"", MASK, "none", "null", "true", "false"}

_known: set[str] = set()  # values of this process's settings


def is_secret_name(name: str) -> bool:
    """Whether the value of this setting, header or variable is a secret.

    >>> [is_secret_name(n) for n in ("engine.arguments.hf_token", "HF_TOKEN", "max_new_tokens")]
    [True, True, False]
    """
    lower = _CAMEL.sub("_", name).lower().replace("-", "_")
    return bool(_NAME.search(lower)) and not _NO_SECRET.search(lower)


def mask(text: str) -> str:
    """The text with every secret in it replaced by asterisks."""
    for value in _values():
        text = text.replace(value, MASK)
    text = mask_url(text)
    for pattern in _PAIRS:
        text = pattern.sub(_mask_pair, text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    return _FORMS.sub(MASK, text)


def mask_url(text: str) -> str:
    """The text with only the passwords of URLs masked: the same in every process."""
    return _URL_PASSWORD.sub(rf"\1:{MASK}@", text)


def mask_tree(value: Any, name: str = "") -> Any:
    """A copy of nested settings with every secret in it replaced by asterisks."""
    if isinstance(value, Mapping):
        return {key: mask_tree(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_tree(item, name) for item in value]
    if _is_plain_secret(name, value):
        return MASK if is_secret_name(name) else mask(str(value))
    return value


def plain_secrets(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted names and values of settings that hold a secret itself, not a reference to one."""
    for name, value in _leaves(tree):
        if _is_plain_secret(name, value):
            yield name, str(value)


def remember(tree: Mapping[str, Any]) -> None:
    """Have `mask` replace the secrets of these settings wherever they occur."""
    _known.update(value for _, value in plain_secrets(tree) if len(value) >= _SHORTEST)


def remember_words(words: list[str]) -> None:
    """The same of a command line, before it is parsed."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    remember({name: value.strip("\"'") for name, _, value in pairs if value})


def expand(value: Any) -> Any:
    """The value with each reference replaced by its variable, in nested lists and mappings too.

    Raises:
        ConfigError: a variable is not set, and the reference has no default.
    """
    if isinstance(value, Mapping):
        return {key: expand(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expand(item) for item in value]
    return REFERENCE.sub(_variable, value) if isinstance(value, str) else value


def _variable(reference: re.Match[str]) -> str:
    name, default = reference.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(f"a setting refers to the environment variable {name}: set it")
    if len(value) >= _SHORTEST:
        _known.add(value)
    return value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value


def _is_plain_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return False
    text = REFERENCE.sub("", str(value)).strip()
    if is_secret_name(name):
        return re.sub(rf"^{_SCHEME[:-4]}\s*)$", "", text).lower() not in _PLAIN
    return isinstance(value, str) and mask(text) != text


def _values() -> list[str]:
    """Secrets of this process, the longest first: one may be part of another."""
    variables = {
        value.strip()
        for name, value in os.environ.items()
        if len(value.strip()) >= _SHORTEST and is_secret_name(name)
    }
    return sorted(variables | _known, key=len, reverse=True)


def _mask_pair(found: re.Match[str]) -> str:
    name, between, value = found.group("name", "between", "value")
    quote = value[0] if value[0] in "\"'" else ""
    bare = value.strip(quote).strip() if quote else value
    if value[0] == "[" and is_secret_name(name.lstrip(" +-")):
        references = REFERENCE.sub("", value).strip("[]'\", ")
        return f"{name}{between}[{MASK}]" if references else found[0]
    if bare.lower() in _PLAIN or bare[0] == "$" or not is_secret_name(name.lstrip(" +-")):
        return found[0]
    return f"{name}{between}{quote}{MASK}{quote}"
