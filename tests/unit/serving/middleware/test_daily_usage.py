"""Budgets of a day: across restarts, and over midnight."""

import asyncio
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.serving.keyring import Key
from pipeline.serving.middleware import daily_usage
from pipeline.serving.middleware.daily_usage import DailyUsage, read_usage, seconds_left
from pipeline.serving.middleware.rate_limits import Allowance, RateLimited, RateLimiter


def allowance(usage: DailyUsage, **limits: int) -> Allowance:
    return RateLimiter(usage).allowance(Key(name="anna", sha256="0" * 64, **limits))


def test_a_request_beyond_the_budget_is_refused_until_midnight() -> None:
    async def run() -> None:
        mine = allowance(DailyUsage(), requests_per_day=2, tokens_per_day=100)
        await mine.count_request()
        await mine.charge_prompt(60)
        await mine.charge_completion(30)
        with pytest.raises(RateLimited, match="tokens per day: limit 100, used 90, requested 20"):
            await mine.charge_prompt(20)
        with pytest.raises(RateLimited, match="shorten"):
            await mine.charge_prompt(101)
        await mine.count_request()
        with pytest.raises(RateLimited, match="requests per day: limit 2, used 2") as caught:
            await mine.count_request()
        assert caught.value.retry_after == pytest.approx(seconds_left(), abs=2)

    asyncio.run(run())


def test_a_failed_prompt_is_given_back_once() -> None:
    async def run() -> None:
        usage = DailyUsage()
        mine = allowance(usage, tokens_per_day=100)
        await mine.charge_prompt(60)
        await mine.refund_prompt()
        await mine.refund_prompt()
        await mine.charge_prompt(40)
        assert usage.of("anna").tokens == 40

    asyncio.run(run())


def test_a_restart_keeps_the_count_and_the_next_day_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "usage.json"

    async def run() -> None:
        first = DailyUsage(file)
        first.count("anna", requests=1, tokens=70)
        first.close()
        second = DailyUsage(file)
        assert (second.of("anna").requests, second.of("anna").tokens) == (1, 70)
        assert file.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(daily_usage, "_today", lambda: "2999-01-01")
        assert second.of("anna").tokens == 0
        assert read_usage(file) == {}
        second.count("anna", tokens=5)
        second.close()
        assert read_usage(file)["anna"].tokens == 5

    asyncio.run(run())


def test_the_file_is_written_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daily_usage, "WRITE_SECONDS", 0)
    file = tmp_path / "usage.json"

    async def run() -> None:
        usage = DailyUsage(file)
        usage.count("anna", tokens=7)
        usage.count("anna", tokens=7)
        while not read_usage(file):
            await asyncio.sleep(0)
        assert read_usage(file)["anna"].tokens == 14

    asyncio.run(run())


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match="remove it to count from zero"):
        DailyUsage(file)
    with pytest.raises(ConfigError, match="cannot be written"):
        DailyUsage(tmp_path / "none" / "usage.json")
