"""What the ready configurations (conf/guardrails) look for; without a model, in microseconds.

Each check gives the kind of what it found, never the text itself.
"""

import base64
import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.secrets import mask

# Digits of a number, possibly in groups; a date or an amount has fewer.
_DIGITS = re.compile(r"(?<![\d.,])\d(?:[ .\-_/]{0,3}\d){7,33}(?!\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2}\d{2}(?:[ \-]?[A-Za-z0-9]){10,30})(?![A-Za-z0-9])")
_SOCIAL = re.compile(r"(?<!\d)(?!000|666|9\d\d)\d{3}[- ](?!00)\d{2}[- ](?!0000)\d{4}(?!\d)")
_WORDS = (
    "zero one two three four five six seven eight nine oh o".split(),
    "0 1 2 3 4 5 6 7 8 9 0 0".split(),
)
_SPOKEN = re.compile(
    rf"\b(?:{'|'.join(_WORDS[0])})\b(?=\W+(?:{'|'.join(_WORDS[0])}|\d)\b)|\b(?:{'|'.join(_WORDS[0][:10])})\b"
)
# Not the routing number: that is the bank's own, and printed on every check.
_ACCOUNT = re.compile(
    r"\b(?:account|acct|customer|member)(?:\s+(?:number|no|id|code))?"
    r"\W{0,3}(?:is|was|=)?\W{0,3}\d(?:[ \-]?\d){5,16}\b",
    re.IGNORECASE,
)
_PIN = re.compile(
    r"\b(?:pin|cvv2?|cvc2?|security\s+code|one[- ]time\s+(?:code|password)|otp|passcode)\b"
    r"(?:\s+code)?\W{0,3}(?:is|was|=|:)?\W{0,3}\d{3,8}\b",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"\bpass(?:word|phrase|wd)\b\W{0,3}(?:is|was|=|:)\W{0,3}\S{4,}", re.I)


def plain(text: str) -> str:
    """The text in lower case, in plain letters, and without what hides words from patterns.

    Full-width and styled letters become ASCII, invisible characters go, and letters of other
    alphabets that look Latin become Latin.
    """
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Me"))
    return text.translate(_LOOKALIKES).lower()


_LOOKALIKES = str.maketrans(
    "аеорсухіјԁһӏвмнткАЕОРСУХІЈВМНТКαοενιτκρ", "aeopcyxijdhlbmhtkAEOPCYXIJBMHTKaoevitkp"
)


def disguises(text: str) -> list[str]:
    """The text as `plain`, and what it may hide.

    Letters with gaps between them are joined, digits that stand for letters replaced; base64, hex,
    ROT13 and reversed text decoded.
    """
    first = plain(text)
    found = [first]
    if _SPACED.search(first):
        found.append(_SPACED.sub(lambda run: re.sub(r"[\s.\-_*|/+~]", "", run[0]), first))
    leet = first.translate(_LEET)
    if leet != first:
        found.append(re.sub(r"(?<=\w)[*.\-_](?=\w)", "", leet))
    for run in _ENCODED.findall(text)[:MOST_ENCODED]:
        for decode in (_from_base64, _from_hex):
            decoded = decode(run)
            if decoded:
                found.append(plain(decoded))
    if len(first) <= MOST_TURNED:
        turned = (first[::-1], codecs.encode(first, "rot13"))
        found += [text for text in turned if len(COMMON_WORDS.intersection(text.split())) > 1]
    return found


MOST_ENCODED = 20  # runs that are decoded
MOST_TURNED = 2000  # characters of a text that is read backwards, and by ROT13
_SPACED = re.compile(r"(?<!\w)(?:\w[\s.\-_*|/+~]){2,}\w(?!\w)")
_LEET = str.maketrans("013457@$!|", "oieastasil")
_ENCODED = re.compile(r"[A-Za-z0-9+/=_\-]{16,}")


def _from_base64(run: str) -> str | None:
    try:
        decoded = base64.b64decode(run + "=" * (-len(run) % 4), altchars=b"-_").decode()
    except ValueError:
        return None
    return decoded if decoded.isprintable() else None


def _from_hex(run: str) -> str | None:
    try:
        decoded = bytes.fromhex(run).decode()
    except ValueError:
        return None
    return decoded if decoded.isprintable() else None


def private_data(text: str) -> str | None:
    """The kind of account data or secret in a text: a card number, an IBAN, a key, a password …

    Card numbers and IBANs count only if their check digits are right.
    """
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    if mask(text) != text:
        return "a key or token"
    digits = _spoken_digits(text) if len(text) < 10_000 else text
    for found in _DIGITS.finditer(digits):
        number = re.sub(r"\D", "", found[0])
        if any(
            _is_card(number[i : i + n]) for n in (16, 15, 14, 13, 19) for i in _starts(number, n)
        ):
            return "a card number"
    if any(_is_iban(found[1]) for found in _IBAN.finditer(text)):
        return "an IBAN"
    if _SOCIAL.search(text):
        return "a social security number"
    for pattern, kind in (
        (_PIN, "a code"),
        (_PASSWORD, "a password"),
        (_ACCOUNT, "an account number"),
    ):
        if pattern.search(digits):
            return kind
    return None


def _starts(number: str, length: int) -> range:
    """A number may be part of a longer run of digits, if somebody tries to hide it there."""
    return range(max(0, len(number) - length + 1))


def _spoken_digits(text: str) -> str:
    """The text with digits that are written as words as digits, where several follow each other."""
    lower = text.lower()
    if not re.search(rf"(?:\b(?:{'|'.join(_WORDS[0])})\b\W+){{6}}", lower):
        return text
    return _SPOKEN.sub(lambda found: _WORDS[1][_WORDS[0].index(found[0])], lower)


def _is_card(number: str) -> bool:
    """Luhn's check, for the first digits that networks of cards have."""
    if number[0] not in "3456" and number[:2] not in ("22", "23", "24", "25", "26", "27"):
        return False
    if len(set(number)) == 1:
        return False
    total = 0
    for place, digit in enumerate(map(int, reversed(number))):
        total += digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
    return total % 10 == 0


def _is_iban(text: str) -> bool:
    number = re.sub(r"[ \-]", "", text).upper()
    moved = number[4:] + number[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


class Phrases:
    """Patterns, one a line, in a file; # begins a comment. They see the text as `plain` gives it.

    Raises:
        ConfigError: the file cannot be read, or a line is not a pattern; names file and line.
    """

    def __init__(self, file: Path) -> None:
        self._patterns: list[re.Pattern[str]] = []
        for number, line in enumerate(_lines(file), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                self._patterns.append(re.compile(line.strip()))
            except re.error as error:
                raise ConfigError(f"{file}:{number}: not a pattern: {error}") from error

    def found_in_disguise(self, text: str) -> bool:
        """Whether a pattern is in the text, or in what is hidden in it: see `disguises`."""
        return any(p.search(shown) for shown in disguises(text) for p in self._patterns)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


class Shingles:
    """Runs of words of texts that must not be repeated word for word.

    Args:
        length: words of a run. A shorter text of at least four words counts as a whole.
    """

    def __init__(self, texts: Iterable[str], length: int = 8) -> None:
        self._length = length
        self._runs: set[int] = set()
        self._lengths: set[int] = set()
        for text in texts:
            words = words_of(text)
            size = min(length, len(words))
            if size >= 4:
                self._lengths.add(size)
                self._runs |= {hash(run) for run in _runs(words, size)}

    def found(self, text: str) -> bool:
        words = words_of(text)
        return any(hash(run) in self._runs for size in self._lengths for run in _runs(words, size))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", plain(text))


def _runs(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def supported_share(answer: str, chunks: str) -> float:
    """Share of an answer's sentences whose facts are in a text; 1 for an answer without any.

    A fact is a number, a name or a longer word. A sentence is supported if all its numbers and
    most of its words are in the text.
    """
    known = set(words_of(chunks))
    stems = {stem(word) for word in known}
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", answer) if len(words_of(s)) > 2]
    if not sentences:
        return 1.0
    good = 0
    for sentence in sentences:
        words = [word for word in words_of(sentence) if word not in COMMON_WORDS]
        numbers = [word for word in words if any(c.isdigit() for c in word)]
        shared = sum(stem(word) in stems for word in words)
        if all(n in known for n in numbers) and (not words or shared >= 0.6 * len(words)):
            good += 1
    return good / len(sentences)


def stem(word: str) -> str:
    for ending in ("ing", "ies", "es", "ed", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            return word[: -len(ending)]
    return word


COMMON_WORDS = frozenset(
    "a an and are as at be but by can do does for from has have how i if in is it its may me my no "
    "not of on or our so that the their them then there these they this to us was we what when "
    "where which who will with you your please yes also any all more most within up out".split()
)
