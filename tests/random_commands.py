"""Random command lines, and whether each is answered as it should be.

    python -m tests.random_commands                     1,000 of them, 20 as processes of their own
    python -m tests.random_commands --seed 7 --count 5000 --processes 0

Nothing runs: the stages are replaced. A command line is answered rightly if it is accepted and has
no word that is known to be wrong, or refused in one line with a documented exit code, without a
traceback, within a second. Prints the counts and every command line that was not.
"""

import argparse
import contextlib
import io
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from pipeline import __main__ as command
from pipeline.config.schema import Config
from pipeline.core.paths import ROOT
from pipeline.orchestration import compose
from tests.unit.config.schema_walk import Leaf, leaves

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9}
MOST_CHARACTERS = 1_000  # of a refusal
MOST_SECONDS = 1.0  # of the processor, which others may use; a process starts Python, too
LONG = "x" * 20_000

# Words that must be refused wherever they stand.
WRONG = [
    "engine=1.5", "register==", "=x", "==", "seed==", "=", "a.b.c=1", "sed=1", "-x", "--params",
    "--cfg", "--cfg=x", "stage", "finetune=qlora", "finetune=[lora]", "finetune={a:1}", "model=1",
    "engine=true", "quantize=null", "data=", "launcher=''", "model=../../etc/passwd", "model=a/b",
    "finetune.max_steps=", "finetune.max_steps=''", "finetune.max_steps=[]", "seed=${nothing}",
    "seed=${oc.env:NO_SUCH_VARIABLE}", "seed=${oc.env:", "seed=${seed}", "seed={", "seed=[1",
    "seed='1", "finetune=1e5", "~seed", "~finetune", "+seed=1", "+nothing=1", "seed@x=1",
    "model@x=bundled", "model.path=\0", "model.path=a\0b", "model.name=a\nb", "data.train=[\0]",
    "model.name=\udcff", "tracking.experiment=\x1b[31m", "evaluate.max_new_tokens=true",
    "finetune.parallel.processes=1e26", "finetune.max_steps=1e300", "seed=-0.5", "seed=1.5",
    "retrain.schedule='99 99 99 99 99'", "retrain.schedule='* * * *'", "retrain.schedule=@never",
    f"model.name={LONG}", f"{LONG}=1", LONG, f"model={LONG}", f"engine={'9' * 5_000}",
    f"seed={'9' * 5_000}", f"seed={'[' * 500}", "engine.arguments=3", "engine.arguments=[1]",
    "engine.arguments.tensor_parallel_size=0", "engine.arguments.tensor_parallel_size=true",
    "evaluate.gate.max_drop.fp8=0.1", "evaluate.gate.format.margin=x", "quantize.exclude=[]",
    "quantize.compare=[fp8,nothing]", "quantize.compare=fp8", "finetune=lora,sft", "seed=1,2",
    "hydra.nothing=1", "hydra/launcher=nothing", "stage=", "stage=nothing", "stage=[all]",
    "tracking.uri=htp:/x", "launcher.name=slurm", "launcher.name=nowhere", "launcher=slurm",
    "model.path=", "data.folder=''", "serve.port=70000", "serve.version=true", "serve.version=0",
    "tracking.enabled=perhaps", "finetune.learning_rate=nan", "finetune.learning_rate=inf",
    "finetune.learning_rate=-1", "finetune.learning_rate=0x10", "benchmark.concurrency=[true]",
    "benchmark.concurrency=[0]", "benchmark.concurrency=4", "experiment=nothing", "plan.gpu=h300",
    "verbose", "ß=1", "finetune.=1", ".finetune=1", "finetune..max_steps=1", "finetune.0=1",
]  # fmt: skip
# Words that may be right or wrong, by what stands beside them.
OTHERS = [
    "stage=all", "stage=config", "stage=plan", "model=local", "data=files", "finetune=sft",
    "quantize=int4_awq", "engine=onnxruntime", "engine=remote", "launcher=torchrun",
    "launcher=kubernetes", "experiment=llama3_8b", "experiment=null", "++seed=1",
    "+engine.arguments.x=1", "engine.arguments.x=1", "engine.arguments={a: 1}", "-m", "--multirun",
    "--resolve", "--traceback", "model.name=é", "model.path='a b'", "data.folder=~/x",
    "tracking.experiment='ü #1'", "data.train=[a b.jsonl,c]", "seed=${oc.decode:3}",
    "model.name=${tracking.experiment}", "register.name='{x}'", "hydra.verbose=true",
    "evaluate.gate.format.margin=0.1", "finetune.pack_length=null", "plan.gpu=h100",
    "--package", "hydra.job.chdir=true", "hydra.run.dir=/tmp", "seed=0x1", "seed=1_000",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line. wrong: a word of it that must be refused."""

    words: tuple[str, ...]
    wrong: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command line gave. problem: why that is not right; empty if it is."""

    case: Case
    code: int
    seconds: float
    problem: str = ""


def cases(seed: int, count: int) -> Iterator[Case]:
    """Command lines of one to six words, the same for the same seed."""
    draw = random.Random(seed)
    settings = list(leaves(Config))
    stages = compose.stage_names()
    for _ in range(count):
        words = [f"stage={draw.choice(stages)}"] if draw.random() < 0.9 else []
        wrong = ""
        for _ in range(draw.randint(0, 5)):
            kind = draw.random()
            if kind < 0.2:
                word = wrong = draw.choice(WRONG)
            elif kind < 0.45:
                word = draw.choice(OTHERS)
            else:
                word, is_wrong = _setting(draw, draw.choice(settings))
                wrong = word if is_wrong else wrong
            words.append(word)
        if draw.random() < 0.5:
            draw.shuffle(words)
        # After an option that takes a value the next word is that value. A sweep's words are
        # checked by the sweep, which is replaced.
        taken = any(
            word in ("--package", "--cfg", "--params", "-m", "--multirun") for word in words
        )
        yield Case(tuple(words), "" if taken else wrong)


def _setting(draw: random.Random, leaf: Leaf) -> tuple[str, bool]:
    """A setting with some value, and whether its type or its bounds do not allow it."""
    texts = ["", "''", "x", "true", "null", "nan", "[]", "[1,2]", "{a: b}", "???", "a b", "é", LONG]
    numbers: list[Any] = [-1, 0, 1, 7, 0.5, 1e26, -1e26, 10**30, 1.5, "1e-400", "0b1", "true"]
    if leaf.is_number and draw.random() < 0.7:
        value = draw.choice([*numbers, *leaf.bounds])
        within = isinstance(value, int | float) and leaf.allows(value)
        return f"{leaf.name}={value}", not within and value not in ("1e-400", "0b1")
    value = draw.choice(texts)
    return f"{leaf.name}={value}", leaf.is_number and value in ("x", "true", "nan", "a b", "[1,2]")


def judge(case: Case) -> Answer:
    """Run a command line in this process, with the stages replaced."""
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()  # others may use the processor
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _nothing_runs():
        try:
            code = command.main(list(case.words))
        except (Exception, SystemExit) as error:
            code = -1
            err.write(f"Traceback: {error!r}")
    return _judged(case, code, time.process_time() - started, err.getvalue(), MOST_SECONDS)


def judge_process(case: Case) -> Answer | None:
    """The same as a process, which runs nothing either; None if the system takes no such words."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.random_commands", "--one", *case.words],
            cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=600,
        )  # fmt: skip
    except ValueError:  # a NUL, which no shell passes on
        return None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _judged(case, done.returncode, seconds, done.stderr, 3 * MOST_SECONDS)


def _judged(case: Case, code: int, seconds: float, said: str, most: float) -> Answer:
    lines = said.rstrip("\n").split("\n") if said.strip() else []
    problem = ""
    if "Traceback" in said and "--traceback" not in case.words:
        problem = f"a traceback: {lines[-1][:200]}"
    elif code not in CODES:
        problem = f"exit code {code}, which is not documented"
    elif code == 0 and case.wrong:
        problem = f"{case.wrong[:60]!r} passes"
    elif code and "--traceback" not in case.words and len(lines) != 1:
        problem = f"{len(lines)} lines: {said[:300]!r}"
    elif code and len(lines[-1]) > MOST_CHARACTERS:
        problem = f"a refusal of {len(lines[-1]):,} characters: {lines[-1][:200]}"
    elif seconds > most:
        problem = f"{seconds:.1f} s"
    return Answer(case, code, seconds, problem)


@contextlib.contextmanager
def _nothing_runs() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("_start", "_sweep"):
            stack.enter_context(mock.patch.object(command, name, return_value=0))
        yield


def report(answers: Sequence[Answer]) -> str:
    """The counts, and the command lines that were not answered rightly."""
    codes = Counter(answer.code for answer in answers)
    bad = [answer for answer in answers if answer.problem]
    slowest = max((answer.seconds for answer in answers), default=0.0)
    lines = [
        f"{len(answers):,} command lines: {codes.pop(0, 0):,} accepted, "
        + ", ".join(f"{count:,} refused with exit code {code}" for code, count in codes.items()),
        f"{len(bad)} not answered rightly; the slowest took {slowest:.2f} s",
    ]
    for answer in bad:
        shown = " ".join(repr(word[:80]) for word in answer.case.words)
        lines.append(f"  {shown}: {answer.problem}")
    return "\n".join(lines)


def main() -> int:
    """Run the command lines and print the report; 1 if one was not answered rightly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=20, help="of them as processes")
    given = sys.argv[1:]
    if given[:1] == ["--one"]:
        with _nothing_runs():
            return command.main(given[1:])
    options = parser.parse_args()
    compose.compose([])  # Hydra's import, which the first one would take the time of
    made = list(cases(options.seed, options.count))
    answers: list[Answer] = []
    for case in made:
        answers.append(judge(case))
        if len(answers) % 100 == 0 or answers[-1].problem:
            wrong = sum(bool(answer.problem) for answer in answers)
            print(f"{len(answers):,} of {len(made):,}, {wrong} not answered rightly", flush=True)
    print(report(answers), flush=True)
    processes = [a for a in map(judge_process, made[: options.processes]) if a]
    print("As processes:", report(processes))
    return int(any(answer.problem for answer in [*answers, *processes]))


if __name__ == "__main__":
    sys.exit(main())
