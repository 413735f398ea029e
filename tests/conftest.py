"""What holds for every test."""

import signal

import pytest

from pipeline.core.console import get_console


def pytest_configure() -> None:
    """Tests interrupt themselves, which a job that a shell runs in the background ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_console() -> None:
    """A console reads the terminal's width once, so each test gets one of its own."""
    get_console.cache_clear()
