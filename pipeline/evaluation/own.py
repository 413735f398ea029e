"""A metric of the user's own: one function in a file of the project.

    def polite(answer):                      # measures.py
        \"\"\"share of the answers that say please or thank you\"\"\"
        return "please" in answer.lower() or "thank" in answer.lower()

    evaluate.metrics=[token_f1,measures.py:polite]

The function is called once for each question. It names what it needs as parameters: `answer`,
`expected`, `messages` (the turns before the answer), `tags`, `source` and `language`. It returns a
number, true or false, or None where it does not apply. Its attributes `title`, `format` and
`higher_is_better` say how the figure is shown; the first line of its docstring says what it means.
"""

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, DataError
from pipeline.evaluation.metrics import Answers, Metric
from pipeline.evaluation.slices import Asked

PARAMETERS = ("answer", "expected", "messages", "tags", "source", "language")


def load(file: Path, function: str) -> Metric:
    """The metric of a function. What is wrong with it is raised when it is measured, in a line."""
    try:
        called = _function(file, function)
    except ConfigError as error:
        refusal = error

        def refuse(answers: Answers) -> Sequence[float]:
            raise refusal

        return Metric(function, function, f"{file}:{function}", refuse)
    meaning = (inspect.getdoc(called) or "").partition("\n")[0].rstrip(".")
    return Metric(
        name=function,
        title=str(getattr(called, "title", function.replace("_", " "))),
        meaning=meaning or f"{function} of {file}",
        values=_values(called, f"{file}:{function}"),
        format=str(getattr(called, "format", ".3f")),
        higher_is_better=bool(getattr(called, "higher_is_better", True)),
    )


def _function(file: Path, name: str) -> Callable[..., Any]:
    place = f"evaluate.metrics: {file}:{name}"
    if not file.is_file():
        raise ConfigError(f"{place}: there is no file {file}, seen from {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(f"measures_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ConfigError(f"{place}: the file cannot be loaded ({_words(error)})") from error
    called = getattr(module, name, None)
    if not callable(called):
        raise ConfigError(f"{place}: the file has no function {name}")
    try:
        wrong = [p for p in inspect.signature(called).parameters if p not in PARAMETERS]
    except ValueError:  # of some functions in C
        raise ConfigError(f"{place}: it names no parameters: write a function around it") from None
    if wrong:
        raise ConfigError(
            f"{place} has the parameter {wrong[0]}: choose from {', '.join(PARAMETERS)}"
        )
    shape = getattr(called, "format", ".3f")
    try:
        format(0.5, shape)
    except (ValueError, TypeError):
        raise ConfigError(f"{place}: format {shape!r} is none of a number, as .1%") from None
    return called  # type: ignore[no-any-return]


def _values(called: Callable[..., Any], place: str) -> Callable[[Answers], list[float]]:
    names = list(inspect.signature(called).parameters)

    def values(answers: Answers) -> list[float]:
        found = []
        asked = answers.asked or [Asked((), str(i)) for i in range(len(answers.texts))]
        for text, expected, one in zip(answers.texts, answers.expected, asked, strict=True):
            given = {
                "answer": text, "expected": expected, "messages": list(one.messages),
                "tags": list(one.tags), "source": one.source, "language": one.language,
            }  # fmt: skip
            try:
                value = called(**{name: given[name] for name in names})
            except (Exception, SystemExit) as error:  # whatever the user's function raises
                raise DataError(f"{place} raised {_words(error)} at {one.source}") from error
            found.append(_number(value, place, one.source))
        return found

    return values


def _number(value: Any, place: str, source: str) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise DataError(f"{place} returned a {kind} at {source}, which is no number") from None
    if math.isinf(number):
        raise DataError(f"{place} returned infinity at {source}")
    return number


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
