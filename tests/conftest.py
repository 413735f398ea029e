"""What holds for every test."""

import pytest

from pipeline.core.console import get_console


@pytest.fixture(autouse=True)
def own_console() -> None:
    """A console reads the terminal's width once, so each test gets one of its own."""
    get_console.cache_clear()
