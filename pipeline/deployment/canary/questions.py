"""Questions that both versions are asked before a user is sent to the candidate: labelled ones, and
those of recorded conversations (the shadow).

Their answers go to nobody but the report. A recorded conversation is one whose user agreed to it
(serve.record).
"""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.client.addresses import headers, is_loopback
from pipeline.config.evaluate import CHAMPION, SERVED
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, DataError, PipelineError
from pipeline.deployment.canary.criteria import Finding
from pipeline.deployment.canary.sequential import pool_mean
from pipeline.evaluation.measure import values_of
from pipeline.evaluation.metrics import Answers, Metric
from pipeline.evaluation.resources import Resources, metrics_of
from pipeline.evaluation.slices import Asked, Slice, asked_of
from pipeline.models.chat.messages import parse_messages
from pipeline.models.chat.tool_calls import as_request
from pipeline.serving.address import API_KEY
from pipeline.serving.middleware.recording import PART

AT_ONCE = 4  # questions in flight at each server
BATCH = 16  # questions between two looks
MOST_SHADOW = 100  # conversations, the newest
MOST_LINE = 4 * 2**20  # characters
_SECONDS = 600.0


@dataclass(frozen=True)
class Question:
    """asked: the turns before the answer. expected: the right answer, or what was recorded."""

    asked: Asked
    expected: str


@dataclass(frozen=True)
class Reply:
    """text: the answer; "" with a failure. failure: why there is none."""

    text: str
    cut: bool = False
    failure: str = ""


@dataclass(frozen=True)
class Pair:
    """What both versions answered to a question."""

    question: Question
    stable: Reply
    candidate: Reply

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question.asked.text, "expected": self.question.expected,
            "stable": self.stable.failure or self.stable.text,
            "candidate": self.candidate.failure or self.candidate.text,
            "alike": not self.candidate.failure and same(self.stable.text, self.candidate.text),
        }  # fmt: skip


@dataclass(frozen=True)
class MetricCriterion:
    """A condition of the gate against the champion (evaluate.gate).

    places: of the pool's questions that it is about, in the order in which they are asked.
    """

    name: str
    title: str
    metric: Metric
    margin: float
    alpha: float
    places: Sequence[int]

    def look(self, pairs: Mapping[int, Pair], resources: Resources) -> Finding | None:
        """As it stands; None: the metric applies to none of the questions."""
        sides: list[tuple[float, float]] = []
        applies = 0
        for place in self.places:
            if place not in pairs:
                applies += 1
                continue
            pair = pairs[place]
            ours, theirs = (_value(self.metric, r, pair, resources)
                            for r in (pair.candidate, pair.stable))  # fmt: skip
            if ours == ours and theirs == theirs:  # NaN: it does not apply
                sides.append((ours, theirs))
                applies += 1
        if not applies:
            return None
        losses = [-self.metric.gain(ours, theirs) for ours, theirs in sides]
        found = pool_mean(losses, applies, self.alpha)
        count = len(sides)
        means = [sum(side) / count for side in zip(*sides, strict=True)] or [0.0, 0.0]
        return Finding(self.name, self.title, means[1], means[0], found.value, found.low,
                       found.high, self.margin, count)  # fmt: skip


def _value(metric: Metric, reply: Reply, pair: Pair, resources: Resources) -> float:
    answers = Answers(
        texts=[reply.text], expected=[pair.question.expected],
        cut=[reply.cut or bool(reply.failure)], asked=[pair.question.asked],
        base=[pair.stable.text],
    )  # fmt: skip
    value = float(values_of(metric, resources)(answers)[0])
    if not (value != value or 0 <= value <= 1):
        raise ConfigError(
            f"{metric.name} is not between 0 and 1, which a canary's statistics need: leave its "
            "condition out of evaluate.gate"
        )
    return value


def labelled(config: Config) -> list[Question]:
    """The questions of canary.questions, else of the test split in artifacts/prepare, in random
    order.

    Raises:
        DataError: the file has none.
    """
    file = config.canary.questions
    if file is not None:
        found = read_conversations(file)
        if not found:
            raise DataError(f"canary.questions={file} has no conversation that ends with an answer")
    else:
        found = _test_questions(config.artifacts / "prepare")
    random.Random(config.seed).shuffle(found)
    return found


def _test_questions(dataset: Path) -> list[Question]:
    from pipeline.core.artifact import open_artifact
    from pipeline.data.dataset import read_split

    if not dataset.is_dir():
        return []
    rows = read_split(open_artifact(dataset, stage="prepare").path, "test")
    return [Question(asked_of(row), str(row.answer)) for row in rows]


def read_conversations(file: Path) -> list[Question]:
    """JSON lines of conversations in OpenAI's form that end with the assistant's turn.

    Raises:
        DataError: the file cannot be read, or a line is no such conversation.
    """
    found = []
    try:
        with file.open(encoding="utf-8", errors="strict") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                place = f"{file}:{number}"
                try:
                    if len(line) > MOST_LINE:
                        raise ValueError("the line is too long")
                    row = json.loads(line)
                    turns = parse_messages(row["messages"], answered=True)
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise DataError(
                        f"{place}: {error}: each line must be JSON as "
                        '{"messages": [{"role": "user", …}, {"role": "assistant", …}]}'
                    ) from error
                tags = tuple(str(t) for t in row.get("tags") or ())
                asked = Asked(turns[:-1], place, tags, row.get("language"))
                found.append(Question(asked, str(turns[-1]["content"])))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): give JSON lines in UTF-8") from error
    return found


def shadow(folder: Path | None) -> list[Question]:
    """The newest conversations that the stable server has recorded.

    Raises:
        DataError: a file is not one of serve.record's.
    """
    if folder is None or not folder.is_dir():
        return []
    files = sorted([*folder.glob("*.jsonl"), *folder.glob(f"*.jsonl{PART}")])
    found: list[Question] = []
    for file in reversed(files):
        found = [*read_conversations(file), *found][-MOST_SHADOW:]
        if len(found) == MOST_SHADOW:
            break
    return found


def metric_criteria(
    config: Config, pool: Sequence[Question], alpha: float
) -> list[MetricCriterion]:
    """The gate's conditions against the champion, on labelled questions."""
    settings = config.evaluate
    metrics = metrics_of(settings)
    found = []
    for name, condition in settings.conditions(SERVED, against=CHAMPION).items():
        metric = metrics[settings.metric_of(condition)]
        if not metric.served:
            continue
        places = _places(condition.slice, pool)
        if not places:
            continue
        title = f"{metric.title} of the gate's condition {name}"
        title += f" (less is worse, {len(places)} questions)" if metric.higher_is_better else ""
        found.append(MetricCriterion(name, title, metric, condition.margin or 0.0, alpha, places))
    return found


def _places(slice: Slice | None, pool: Sequence[Question]) -> list[int]:
    return [i for i, q in enumerate(pool) if slice is None or slice in q.asked.slices]


def ask(
    urls: tuple[str, str], questions: Sequence[Question], *, most_tokens: int, seed: int
) -> list[Pair]:
    """Ask the stable server and the candidate the same.

    urls: of the two servers, without /v1.
    """
    return asyncio.run(_ask(urls, questions, most_tokens, seed))


def ask_candidate(
    url: str, questions: Sequence[Question], *, most_tokens: int, seed: int
) -> list[Pair]:
    """Ask the candidate what the stable server has answered already."""
    replies = asyncio.run(_ask_one(url, questions, most_tokens, seed))
    return [Pair(q, Reply(q.expected), r) for q, r in zip(questions, replies, strict=True)]


async def _ask(
    urls: tuple[str, str], questions: Sequence[Question], most_tokens: int, seed: int
) -> list[Pair]:
    stable, candidate = await asyncio.gather(
        *(_ask_one(url, questions, most_tokens, seed) for url in urls)
    )
    return [Pair(*each) for each in zip(questions, stable, candidate, strict=True)]


async def _ask_one(
    url: str, questions: Sequence[Question], most_tokens: int, seed: int
) -> list[Reply]:
    import httpx

    places = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(
        timeout=_SECONDS, headers=headers(API_KEY), trust_env=not is_loopback(url)
    ) as client:
        model = await _model(client, url)

        async def send(number: int, question: Question) -> Reply:
            body = {
                "model": model, "max_tokens": most_tokens, "seed": seed + number,
                "messages": [as_request(turn) for turn in question.asked.messages],
            }  # fmt: skip
            async with places:
                try:
                    answer = await client.post(f"{url}/v1/chat/completions", json=body)
                    if answer.status_code != 200:
                        return Reply("", failure=f"status {answer.status_code}")
                    choice = answer.json()["choices"][0]
                    text = choice["message"]["content"] or ""
                    return Reply(text, choice["finish_reason"] == "length")
                except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                    return Reply("", failure=type(error).__name__)

        return list(await asyncio.gather(*(send(n, q) for n, q in enumerate(questions))))


async def _model(client: Any, url: str) -> str:
    """The name of the model that a server serves."""
    import httpx

    try:
        answer = await client.get(f"{url}/v1/models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise PipelineError(
            f"{url} does not say which model it serves ({type(error).__name__}): check that it "
            f"runs, and {API_KEY} if it needs a key"
        ) from error


def same(one: str, other: str) -> bool:
    """Whether two answers are alike, but for case and white space."""
    return one.casefold().split() == other.casefold().split()
