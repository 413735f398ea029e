"""What the rails of a request did: for the response, the log and recordings; never their texts."""

from collections.abc import Sequence
from typing import Any

from pipeline.serving.guardrails.outcome import Outcome
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.protocol import GuardrailsField


class Report:
    """Collects the outcomes of one request.

    Args:
        ids: the configurations that apply.
        asked: the request's `guardrails` field.
    """

    def __init__(self, ids: Sequence[str], asked: GuardrailsField | None) -> None:
        self._ids, self._asked = list(ids), asked
        self._outcomes: list[Outcome] = []
        self._context = request_context.current()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes += outcomes
        for outcome in outcomes:
            if outcome.decision != "passed":
                self._context.guardrails.append(str(outcome))
                # An answer of a dialog hides nothing; a text that was blocked or changed must not
                # reach the log or a recording in another way.
                self._context.withheld |= outcome.decision != "answered"

    @property
    def is_asked(self) -> bool:
        return self._asked is not None

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self._outcomes)

    def to_json(self) -> dict[str, Any] | None:
        """The response's `guardrails` field; None if nothing fired and nobody asked."""
        fired = any(outcome.decision != "passed" for outcome in self._outcomes)
        if not (fired or self._asked):
            return None
        found: dict[str, Any] = {"config_ids": self._ids}
        options = self._asked.options.log if self._asked and self._asked.options else None
        if options and (options.activated_rails or options.llm_calls):
            log: dict[str, Any] = {"stats": self._stats()}
            if options.activated_rails:
                log["activated_rails"] = [outcome.to_json() for outcome in self._outcomes]
            if options.llm_calls:
                log["llm_calls"] = [
                    {
                        "task": call.task,
                        "duration": round(call.seconds, 6),
                        "prompt_tokens": call.prompt_tokens,
                        "completion_tokens": call.completion_tokens,
                    }
                    for outcome in self._outcomes
                    for call in outcome.calls
                ]
            found["log"] = log
        return found

    def _stats(self) -> dict[str, Any]:
        def spent(*kinds: str) -> float:
            return round(sum(o.seconds for o in self._outcomes if o.kind in kinds), 6)

        calls = [call for outcome in self._outcomes for call in outcome.calls]
        return {
            "input_rails_duration": spent("input", "tool_input", "retrieval"),
            "dialog_rails_duration": spent("dialog"),
            "output_rails_duration": spent("output", "tool_output"),
            "total_duration": round(self.seconds, 6),
            "llm_calls_count": len(calls),
        }
