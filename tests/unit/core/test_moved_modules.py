"""Old import paths: each is answered with the place where the module is now."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

from pipeline.core.moved_modules import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_module_is_where_the_message_says(old: str, new: str) -> None:
    assert importlib.util.find_spec(f"pipeline.{new}"), new
    with pytest.raises(ModuleNotFoundError) as refused:
        importlib.import_module(f"pipeline.{old}")
    assert f"pipeline.{old} is pipeline.{new} now: change the import" in str(refused.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("from pipeline.chat import Chat", "pipeline.chat is pipeline.models.chat.renderer now"),
        (
            "from pipeline.adapters import hf",
            "pipeline.adapters.hf is pipeline.models.hf_model now",
        ),
        ("from pipeline import runner", "pipeline.runner is pipeline.orchestration.runner now"),
    ],
)
def test_a_script_with_an_old_import_is_told_the_new_one(script: str, message: str) -> None:
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert message in ran.stderr.splitlines()[-1]


def test_a_module_that_never_was_is_an_ordinary_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'pipeline\.nowhere'"):
        importlib.import_module("pipeline.nowhere")
