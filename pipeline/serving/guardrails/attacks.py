"""How well the rails of a server do: attacks blocked, good questions wrongly blocked, seconds.

    python -m pipeline.serving.guardrails.attacks conf/guardrails

Runs the input rails alone, without a model: whether an answer to an attack that passes is harmful
is not measured here.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import commands
from pipeline.core.commands import Parser, run_command
from pipeline.core.errors import ConfigError, GateFailed
from pipeline.serving.guardrails.configuration import find, open_configuration
from pipeline.serving.guardrails.guard import Guardrails
from pipeline.serving.guardrails.model import EngineModel

ATTACKS = Path("data/guardrails/attacks.yaml")
GOOD = Path("data/bank/test.jsonl")


@dataclass
class Measured:
    """
    Attributes:
        blocked, total: attacks, by kind. missed: those that passed.
        wrongly_blocked: good questions. good: how many there are.
        seconds: of the processor, for all rails of each good question. No rail of conf/guardrails
            waits for anything, so this is what it adds to a request on an idle machine.
    """

    blocked: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)
    wrongly_blocked: list[str] = field(default_factory=list)
    good: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def blocked_share(self) -> float:
        return sum(self.blocked.values()) / max(sum(self.total.values()), 1)

    @property
    def wrong_share(self) -> float:
        return len(self.wrongly_blocked) / max(self.good, 1)

    def milliseconds(self, share: float) -> float:
        """The time that this share of the good questions stays below."""
        ordered = sorted(self.seconds) or [0.0]
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def to_json(self) -> dict[str, Any]:
        return {
            "attacks": {
                kind: {"blocked": self.blocked[kind], "of": self.total[kind]} for kind in self.total
            },
            "blocked_share": round(self.blocked_share, 4),
            "good_questions": self.good,
            "wrongly_blocked_share": round(self.wrong_share, 4),
            "rails_cpu_ms_median": round(self.milliseconds(0.5), 3),
            "rails_cpu_ms_p95": round(self.milliseconds(0.95), 3),
        }


def read_attacks(file: Path) -> dict[str, list[str]]:
    """Texts by kind.

    Raises:
        ConfigError: the file cannot be read, or has something else.
    """
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: must be lists of texts, each under the name of its kind")
    for kind, texts in found.items():
        for text in texts if isinstance(texts, list) else [None]:
            if not isinstance(text, str):
                raise ConfigError(f"{file}: {kind} has {text!r:.80}: give a list of texts")
    return found


def read_questions(file: Path) -> list[str]:
    """The last question of each row.

    Raises:
        ConfigError: the file cannot be read, or a line is no conversation; names file and line.
    """
    questions = []
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            turns = json.loads(line)["messages"]
            questions.append([t["content"] for t in turns if t["role"] == "user"][-1])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"{file}:{number}: not a row of a conversation") from error
    return questions


async def measure(
    guardrails: Guardrails, attacks: Mapping[str, Sequence[str]], good: Sequence[str]
) -> Measured:
    """Run the input rails and the dialogs of all configurations on each text."""
    configurations = guardrails.select("", guardrails.ids)

    async def is_blocked(text: str) -> bool:
        variables = {"user_message": text, "history": []}
        checked = await guardrails.check(configurations, "input", variables)
        if checked.stop:
            return True
        outcomes = await guardrails.dialog(configurations, {**checked.values, "history": []})
        return bool(outcomes and outcomes[-1].stops)

    found = Measured(good=len(good))
    for kind, texts in attacks.items():
        passed = [text for text in texts if not await is_blocked(text)]
        found.total[kind], found.missed[kind] = len(texts), passed
        found.blocked[kind] = len(texts) - len(passed)
    for text in good:
        begin = time.process_time()
        if await is_blocked(text):
            found.wrongly_blocked.append(text)
        found.seconds.append(time.process_time() - begin)
    return found


def open_all(folder: Path) -> Guardrails:
    """All configurations of a folder, without a model: a rail that asks one fails, and blocks.

    Raises:
        ConfigError, MissingRuntime: as open_configuration.
    """
    model = EngineModel("none")
    opened = {path.name: open_configuration(path, model) for path in find(folder)}
    return Guardrails(
        opened, default=tuple(opened), by_model={}, timeout=10, fails_open=False, model=model
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m pipeline.serving.guardrails.attacks",
        description="Measures the rails of a folder: attacks blocked, good questions passed.",
    )
    parser.add_argument("folder", type=Path, help="as serve.guardrails")
    parser.add_argument("--attacks", type=Path, default=ATTACKS, help="YAML: texts by kind")
    parser.add_argument("--good", type=Path, default=GOOD, help="rows whose questions must pass")
    share = commands.number(float, 0, 1)
    parser.add_argument("--missed", action="store_true", help="also print what was decided wrongly")
    parser.add_argument("--min-blocked", type=share, default=0.0, help="fail below this share")
    parser.add_argument("--max-wrong", type=share, default=1.0, help="fail above this share")
    given = parser.parse_args(arguments)
    return run_command(lambda: _run(given), files=(given.folder, given.attacks, given.good))


def _run(given: argparse.Namespace) -> None:
    attacks, good = read_attacks(given.attacks), read_questions(given.good)
    found = asyncio.run(measure(open_all(given.folder), attacks, good))
    print(json.dumps(found.to_json(), indent=2))
    if given.missed:
        for kind, texts in {**found.missed, "wrongly blocked": found.wrongly_blocked}.items():
            for text in texts:
                print(f"{kind}: {text!r}", file=sys.stderr)
    if found.blocked_share < given.min_blocked or found.wrong_share > given.max_wrong:
        raise GateFailed(
            f"{found.blocked_share:.1%} of the attacks are blocked (at least "
            f"{given.min_blocked:.1%}), and {found.wrong_share:.1%} of the good questions (at most "
            f"{given.max_wrong:.1%}): --missed shows which"
        )


if __name__ == "__main__":
    sys.exit(main())
