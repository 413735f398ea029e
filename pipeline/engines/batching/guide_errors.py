"""What is wrong with a guide, in plain words: the library's own are about its inner parts."""

import re
from collections.abc import Callable

NOUNS = {
    "json_object": "schema",
    "json_schema": "schema",
    "regex": "regular expression",
    "lark": "grammar",
    "grammar": "grammar",
}


class Unusable(ValueError):
    """A guide that cannot be followed; the message says what is wrong with it."""


def _keywords(found: re.Match[str]) -> str:
    names = re.findall(r'"([^"]{1,40})"', found[1])
    return (
        f"the schema uses {', '.join(names)}, which this server cannot enforce: leave "
        f"{'it' if len(names) == 1 else 'them'} out"
    )


# The library's messages, and ours. The first that is found counts.
MESSAGES: tuple[tuple[str, Callable[[re.Match[str]], str] | str], ...] = (
    (r"Unimplemented keys: \[(.*?)\]", _keywords),
    (r"Invalid type: (\S{1,40})", lambda m: f"the schema has the unknown type {m[1]!r}"),
    (
        r"Unknown format: (\S{1,40})",
        lambda m: f"the schema has the format {m[1]!r}, which this server does not know",
    ),
    (
        r"Resource '(.{1,80}?)' is not present|retrieving|[Uu]nresolvable",
        "the schema refers to another document: only references within it (#/…) are followed",
    ),
    (
        r"Pointer '(.{1,80}?)' does not exist",
        lambda m: f"the schema refers to {m[1]!r}, which it does not have",
    ),
    ("oneOf", "the schema has a oneOf whose branches overlap: use anyOf instead"),
    ("Unsatisfiable schema", "no value can satisfy the schema"),
    ("NoExtension", "no text can satisfy the {noun}; it may refer to itself without end"),
    ("must be an object or boolean", "the schema must be a JSON object"),
    (
        "look-?around|WordUnicode|WordAscii",
        "the regular expression uses look-around or word boundaries, which are not supported",
    ),
    ("backreferences", "the regular expression uses backreferences, which are not supported"),
    (
        r"regex parse error:.*?error: ([\w ,-]{1,80})",
        lambda m: f"the regular expression is not valid: {m[1].strip()}",
    ),
    ("invalid regex|regex parse", "the regular expression is not valid"),
    (
        r'unknown name: "(.{1,80}?)"',
        lambda m: f"the grammar uses {m[1]!r}, which it does not define",
    ),
    ("no start rule|Empty grammar|No start", "the grammar must define a rule named start"),
    ("[Tt]oken (range|id)", "the grammar names a token that the model does not have"),
    (
        r"(?s)^(?:.*?\bat )?(\d+)\((\d+)\)",
        lambda m: f"the grammar is not valid at line {m[1]}, column {m[2]}",
    ),
    (
        "too complex|too large|too big|[Ff]uel|limit",
        "the {noun} is too complex: ask for less in it",
    ),
)


def plain(kind: str, error: str) -> str:
    """Our message for one of the library's about a guide of this kind."""
    noun = NOUNS[kind]
    for pattern, message in MESSAGES:
        if found := re.search(pattern, error, re.DOTALL):
            text = message if isinstance(message, str) else message(found)
            return text.format(noun=noun) if isinstance(message, str) else text
    return f"this server cannot follow the {noun}: simplify it"
