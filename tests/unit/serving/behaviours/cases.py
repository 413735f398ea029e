"""All cases, by subject."""

from collections.abc import Mapping, Sequence

from tests.unit.serving.behaviours import apis, forms, messages, returned, routes, sampling
from tests.unit.serving.behaviours.case import Case

SUBJECTS: Mapping[str, Sequence[Case]] = {
    "Sampling and the end of an answer": sampling.CASES,
    "What a response holds": returned.CASES,
    "Messages and prompts": messages.CASES,
    "Answers of a certain form": forms.CASES,
    "Tool calls and thoughts": apis.CALLS,
    "The Responses API": apis.OPENAI,
    "Anthropic's Messages API": apis.ANTHROPIC,
    "Tokenization, health and facts of the server": routes.CASES,
}
CASES: tuple[tuple[str, Case], ...] = tuple(
    (f"{subject}: {case.name}", case) for subject, cases in SUBJECTS.items() for case in cases
)
