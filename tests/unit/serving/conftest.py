"""Guides are tried out in this process: starting one for each application would take seconds."""

from collections.abc import Iterator, Sequence
from typing import Any

import llguidance
import pytest

from pipeline.engines.base import Client, Guide
from pipeline.engines.batching.guide_errors import Unusable
from pipeline.serving.guides.process import try_out
from pipeline.serving.openai import completions


class GuideCheckerHere:
    """As GuideChecker, without limits; guides/test_checker.py tests the real one."""

    def __init__(self, tokenizer: str, stop_ids: Sequence[int]) -> None:
        self._given: Any = tokenizer, list(stop_ids)

    async def check(self, guide: Guide, client: Client) -> Guide:
        tokenizer, stop_ids = self._given
        tokens = llguidance.LLTokenizer(tokenizer, eos_token=stop_ids)
        found = try_out(tokens, guide)
        if "error" in found:
            raise Unusable(found["error"])
        return Guide(**found)  # type: ignore[arg-type]

    def close(self) -> None: ...


@pytest.fixture(autouse=True, scope="session")
def _guides_are_tried_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completions, "GuideChecker", GuideCheckerHere)
        yield
