"""The guardrails of a server: which configurations apply to a request, and running their rails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.serve import ServeConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.base import Engine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guardrails.configuration import Configuration, find, open_configuration
from pipeline.serving.guardrails.model import EngineModel
from pipeline.serving.guardrails.outcome import Kind, Outcome
from pipeline.serving.guardrails.rails import TEXT, RailFailed
from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context

log = logging.getLogger("pipeline.serving")

REFUSAL = "I'm sorry, I can't respond to that."  # where a rail blocks and says nothing, as NVIDIA's
UNCHECKED = "I'm sorry, I can't answer now: a safety check did not work."
# A turn of the conversation so far that a rail blocks. The conversation can go on without it.
REMOVED = "(removed)"


@dataclass(frozen=True)
class Checked:
    """Rails that have run on one text.

    text: what is left of it. values: variables that rails changed. stop: the outcome that ended
    the checks; None if all rails passed it.
    """

    text: str
    outcomes: tuple[Outcome, ...]
    values: Mapping[str, Any]
    stop: Outcome | None = None


class Guardrails:
    """All configurations of a server.

    Args:
        configurations: by id.
        default: ids for requests whose key and model name none.
        by_model: ids for a model or an adapter.
        timeout: seconds that one rail may take.
        fails_open: whether a text passes if a rail cannot decide about it.
    """

    def __init__(
        self,
        configurations: Mapping[str, Configuration],
        *,
        default: Sequence[str],
        by_model: Mapping[str, Sequence[str]],
        timeout: float,
        fails_open: bool,
        model: EngineModel,
    ) -> None:
        self._configurations = configurations
        self._default, self._by_model = default, by_model
        self._timeout, self._fails_open = timeout, fails_open
        self._model = model
        self._metrics: Metrics | None = None

    @classmethod
    def from_config(cls, settings: ServeConfig, model: str) -> "Guardrails | None":
        """
        Raises:
            ConfigError: a configuration has an error, or a setting names one that is not there.
            MissingRuntime: the extra, or a package that a rail needs, is not installed.
        """
        if settings.guardrails is None:
            return None
        engine_model = EngineModel(model)
        folders = find(settings.guardrails)
        found = {folder.name: open_configuration(folder, engine_model) for folder in folders}
        default = settings.guardrails_default
        by_model = settings.guardrails_by_model
        named = {"serve.guardrails_default": default or ()}
        named |= {f"serve.guardrails_by_model.{name}": ids for name, ids in by_model.items()}
        for setting, ids in named.items():
            for one in ids:
                if one not in found:
                    raise ConfigError(
                        f"{setting}: there is no configuration {one!r}: {settings.guardrails} has "
                        f"{', '.join(found)}"
                    )
        return cls(
            found,
            default=tuple(found) if default is None else default,
            by_model=by_model,
            timeout=settings.guardrails_timeout,
            fails_open=settings.guardrails_on_error == "pass",
            model=engine_model,
        )

    def bind(self, engine: Engine, chat: Chat, metrics: Metrics) -> None:
        """Give it the engine that rails ask, and the metrics to report to."""
        self._model.bind(engine, chat)
        self._metrics = metrics

    @property
    def ids(self) -> list[str]:
        return list(self._configurations)

    def select(self, model: str, asked: Sequence[str]) -> list[Configuration]:
        """The configurations that apply: the key's, else the model's, else the default ones, and
        those that the request asks for. A request cannot leave one out.

        Raises:
            KeyError: the request asks for one that is not there.
        """
        key = request_context.current().key
        required: Sequence[str] | None = key.guardrails if key else None
        if required is None:
            required = self._by_model.get(model, self._default)
        for one in asked:
            if one not in self._configurations:
                raise KeyError(one)
        # A keys file can change while the server runs, and name what is not there.
        missing = [one for one in required if one not in self._configurations]
        if missing:
            raise RailFailed(f"the key's guardrails have no configuration {missing[0]!r}")
        return [self._configurations[one] for one in dict.fromkeys([*required, *asked])]

    async def check(
        self,
        configurations: Sequence[Configuration],
        kind: Kind,
        variables: Mapping[str, Any],
    ) -> Checked:
        """Run all rails of a kind on the text in `variables`, until one stops."""
        values = dict(variables)
        outcomes: list[Outcome] = []
        for configuration in configurations:
            for rail in configuration.rails[kind]:
                outcome = await self._run(configuration.id, rail.name, kind, rail.run(values))
                outcomes.append(outcome)
                values |= outcome.values
                if outcome.stops:
                    return Checked(values[TEXT[kind]], tuple(outcomes), values, outcome)
        return Checked(values[TEXT[kind]], tuple(outcomes), values)

    async def check_earlier(
        self, configurations: Sequence[Configuration], variables: Mapping[str, Any]
    ) -> Checked:
        """The same for an earlier turn of the user, by the input rails that ask no model."""
        cheap = [
            replace(c, rails={"input": [r for r in c.rails["input"] if r.is_quick]})
            for c in configurations
        ]
        return await self.check(cheap, "input", variables)

    def observe(self, seconds: float, first_text: float | None) -> None:
        """Report a request that has ended: seconds of its rails, and until its first text."""
        if self._metrics:
            self._metrics.guarded(seconds, first_text)

    async def dialog(
        self, configurations: Sequence[Configuration], variables: Mapping[str, Any]
    ) -> list[Outcome]:
        """Run the dialogs until one answers."""
        outcomes = []
        for configuration in configurations:
            if configuration.has_dialog:
                run = configuration.dialog(variables)
                outcomes.append(await self._run(configuration.id, "dialog", "dialog", run))
                if outcomes[-1].stops:
                    break
        return outcomes

    async def _run(
        self, configuration: str, rail: str, kind: Kind, run: Awaitable[Outcome]
    ) -> Outcome:
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                outcome = await run
        except (TimeoutError, RailFailed) as error:
            why = str(error) or f"took longer than serve.guardrails_timeout={self._timeout:g}"
            seconds = time.perf_counter() - begin
            outcome = Outcome(configuration, rail, kind, "failed", seconds, detail=why)
        if outcome.decision == "failed":
            log.error(
                "the guardrail %s did not work, and the text %s: %s",
                f"{configuration}/{rail}",
                "passes" if self._fails_open else "is withheld",
                outcome.detail,
                extra={"request_id": request_context.current().id},
            )
        if self._metrics:
            self._metrics.guardrail(configuration, rail, kind, outcome.decision, outcome.seconds)
        if outcome.decision != "failed":
            return outcome
        if self._fails_open:
            return replace(outcome, decision="passed")
        return replace(outcome, message=UNCHECKED)
