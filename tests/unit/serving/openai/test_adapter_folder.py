"""A folder of LoRA adapters that is read again while the server runs."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from pipeline.serving.openai.models import ServedModels


class Engine:
    """Stands for one with adapters; a file `bad` makes an adapter unusable."""

    features = frozenset({"adapters"})

    def __init__(self) -> None:
        self.loaded: dict[str, int] = {}

    def adapters(self) -> list[str]:
        return list(self.loaded)

    async def add_adapter(self, name: str, folder: Path) -> None:
        if (folder / "bad").exists():
            raise ValueError("not an adapter")
        self.loaded[name] = self.loaded.get(name, 0) + 1

    async def remove_adapter(self, name: str) -> None:
        del self.loaded[name]


@pytest.fixture
def models() -> ServedModels:
    return ServedModels(Engine(), "base", "hf", None)


def put(folder: Path, name: str, *files: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    for file in files:
        (folder / name / file).write_text(name)


def names(models: ServedModels) -> set[str]:
    return set(models._adapters())


def test_what_appears_is_served_and_what_is_gone_is_not(
    models: ServedModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "first", "adapter_config.json")

    async def scenario() -> None:
        await models.load_folder(tmp_path)
        await models._load("by-request", tmp_path)
        put(tmp_path, "second", "adapter_config.json")
        put(tmp_path, "base", "adapter_config.json")
        await models.refresh_folder(tmp_path)
        assert names(models) == {"first", "second", "by-request"}
        os.remove(tmp_path / "first/adapter_config.json")
        (tmp_path / "first").rmdir()
        await models.refresh_folder(tmp_path)
        assert names(models) == {"second", "by-request"}
        await models.refresh_folder(tmp_path / "gone")
        assert names(models) == {"second", "by-request"}

    with caplog.at_level(logging.INFO, "pipeline.serving"):
        asyncio.run(scenario())
    said = caplog.text
    assert "adapter second is served" in said
    assert "adapter first is gone" in said


def test_one_that_is_still_being_copied_is_tried_when_it_changes(
    models: ServedModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "late", "bad")

    async def scenario() -> None:
        for _ in range(3):
            await models.refresh_folder(tmp_path)
        assert names(models) == set()
        os.remove(tmp_path / "late/bad")
        put(tmp_path, "late", "adapter_config.json")
        await models.refresh_folder(tmp_path)
        assert names(models) == {"late"}

    asyncio.run(scenario())
    assert caplog.text.count("cannot be served: not an adapter") == 1
