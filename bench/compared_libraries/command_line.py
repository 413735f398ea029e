"""@hydra.main and ConfigStore beside our compose and help: what a command line that is wrong gives.

Three programs take the same words: ours, an application of Hydra's kind, and that one as near to
ours as it comes: errors caught and printed in one line, and no plugins of other libraries imported.
"""

import functools
import os
import subprocess
import sys
import tempfile
from typing import Any

from bench.compared_libraries import hydra_app
from bench.compared_libraries.code_lines import code_lines
from bench.compared_libraries.timing import seconds_of
from bench.origin import ROOT
from pipeline.orchestration import arguments, compose, help

APP = [sys.executable, "-m", hydra_app.__name__]
PROGRAMS: dict[str, tuple[list[str], dict[str, str]]] = {
    "ours": ([sys.executable, "-m", "pipeline"], {}),
    "@hydra.main": (APP, {}),
    "@hydra.main, tuned": (APP, {"TUNED": "1"}),
}
WRONG = {
    "a setting that does not exist": ["stage=config", "prepare.max_lenght=300"],
    "an option that does not exist": ["stage=config", "quantize=int4"],
    "a stage that does not exist": ["stage=finetun"],
    "a text for a number": ["stage=config", "prepare.max_length=long"],
    "out of bounds": ["stage=config", "prepare.validation_share=2"],
    "not one of the choices": ["stage=config", "profiles.format=xml"],
    "a comma": ["stage=config", "data.train=a.jsonl,b.jsonl"],
    "a letter that the grammar does not know": ["stage=config", "data.folder=/data/ü"],
    "a word without =": ["stage=config", "quantize"],
}


def measure() -> dict[str, Any]:
    refused: dict[str, Any] = {kind: {} for kind in WRONG}
    for kind, words in WRONG.items():
        for name in PROGRAMS:
            refused[kind][name] = outcome(name, words)
    timed = {"--help": ["--help"], "refusal": WRONG["a setting that does not exist"]}
    seconds = {
        what: seconds_of({name: functools.partial(run, name, words) for name in PROGRAMS})
        for what, words in timed.items()
    }
    shown = {name: run(name, ["--help"]).stdout for name in PROGRAMS}
    return {
        "milliseconds": {
            what: {name: round(1e3 * s) for name, s in found.items()}
            for what, found in seconds.items()
        },
        "lines_of_a_refusal": {
            name: [len(found[name]["text"].splitlines()) for found in refused.values()]
            for name in PROGRAMS
        },
        "refusals": refused,
        "help": {
            name: {
                "lines": len(text.splitlines()),
                "settings_and_options_explained": explained(text),
            }
            for name, text in shown.items()
        },
        "lines_of_code": {"ours": code_lines(arguments, compose, help)},
    }


def run(name: str, words: list[str]) -> "subprocess.CompletedProcess[str]":
    program, more = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        return subprocess.run(
            [*program, *words], cwd=folder, env=environment, capture_output=True, text=True
        )


def outcome(name: str, words: list[str]) -> dict[str, Any]:
    done = run(name, words)
    text = "\n".join(filter(None, (line.rstrip() for line in done.stderr.splitlines())))
    return {"exit_code": done.returncode, "text": text.replace(f"{ROOT}/", "")}


def explained(text: str) -> int:
    """Lines that say more than a name and a value: with a comment, or two columns of words."""
    return sum("#" in line or "   " in line.strip() for line in text.splitlines())
