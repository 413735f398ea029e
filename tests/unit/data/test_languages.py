"""The language of a row."""

import pytest

from pipeline.data.inspection.languages import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I open an account?", "en"),
        ("WHAT IS THIS CARD FOR?", "en"),
        ("Wie eröffne ich ein Konto?\nIn einer Filiale.", "de"),
        ("¿Cuánto cuesta una transferencia?", "es"),
        ("カードをなくしました", "ja"),
        ("Комиссия за перевод — пять рублей.", "ru"),
        ("ok", None),
        ("", None),
        ("1234567890 + 42 = ???", None),
        ("\ud800 broken", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert language_of(text) == language
