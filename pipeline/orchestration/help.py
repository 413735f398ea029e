"""The text of --help: stages, groups, options, settings, read from the files that define them."""

import ast
import re
from pathlib import Path

from pipeline.core.paths import ROOT
from pipeline.orchestration.graph import OUTSIDE, VERSIONS

USAGE = """\
Usage: python -m pipeline stage=<name> [group=option] [key=value] [--traceback]

From a base checkpoint and a pile of conversations to a served, proven, tracked model.

Stages
{stages}
Groups and their options (* is the default; files in conf/<group>/)
{groups}
Settings (section.key=value, lists as key=[a,b]; groups show their default option)
{settings}
Examples
  python -m pipeline stage=doctor                      what can run on this machine
  python -m pipeline stage=plan                        what a run will take: memory, time, disk
  python -m pipeline stage=plan experiment=llama3_70b model.path=… plan.gpu=h200
  python -m pipeline stage=all                         the whole chain; what is up to date stays
  python -m pipeline stage=all quantize=int4_awq       the same with another format
  python -m pipeline stage=finetune finetune=sft finetune.max_steps=50
  python -m pipeline stage=profiles                    how it could be served here, and how not
  python -m pipeline stage=build engine.profile=hf-fp32-tp1-pp1
  python -m pipeline stage=serve serve.port=8001
  python -m pipeline stage=retrain retrain.recordings=recorded
                                                       the chain again, once enough is new
  dvc repro                                            the graph, as params.yaml says
  dvc exp run -S quantize=int4_awq                     the graph as a DVC experiment

Exit codes: 0 done, 1 failed, 2 configuration, 3 data or model, 4 artifact, 5 gate, 6 proof,
7 missing runtime, 8 busy, 9 disk or memory, 130 interrupted. --traceback shows where it arose.
"""


def help_text() -> str:
    """The whole help, without composing or importing any stage."""
    return USAGE.format(stages=_stages(), groups=_groups(), settings=_settings())


def _stages() -> str:
    """Names in the graph's order, each with the first line of its file's docstring."""
    declared = re.findall(r"^  (\w+):$", (ROOT / "dvc.yaml").read_text(), re.MULTILINE)
    in_graph = [name for name in declared if name != VERSIONS]
    lines = [f"  {name:<10} {_docstring(name)}" for name in [*in_graph, *OUTSIDE]]
    lines.append(
        f"  {'all':<10} The graph from prepare to register, by DVC, and a summary of what came out."
    )
    lines.append(f"  {'config':<10} Print the composed configuration.")
    return "\n".join(lines) + "\n"


def _docstring(stage: str) -> str:
    file = ROOT / "pipeline" / "stages" / ("import_.py" if stage == "import" else f"{stage}.py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def _defaults() -> dict[str, str]:
    """Each group's default option."""
    config = (ROOT / "conf" / "config.yaml").read_text()
    return dict(re.findall(r"^  - (\w+): (\w+)$", config, re.MULTILINE))


def _groups() -> str:
    defaults = _defaults()
    lines = []
    for group in sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir()):
        lines.append(f"  {group.name}")
        for option in sorted(group.glob("*.yaml")):
            star = "*" if defaults.get(group.name) == option.stem else " "
            lines.append(f"  {star} {option.stem:<14} {_first_comment(option)}")
    return "\n".join(lines) + "\n"


def _first_comment(file: Path) -> str:
    # Hydra reads an experiment's first line: it says that the file sets any part of the tree.
    lines = file.read_text().removeprefix("# @package _global_\n")
    first = lines.split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _settings() -> str:
    """The files of the default options, then conf/config.yaml from its first setting on.

    Their comments are the explanations.
    """
    text = ""
    for group, option in _defaults().items():
        file = ROOT / "conf" / group / f"{option}.yaml"
        if file.is_file():  # experiment: null is none
            settings = re.sub(r"\A(#.*\n)+", "", file.read_text())
            text += f"{group}:\n" + re.sub(r"^(?=.)", "  ", settings, flags=re.MULTILINE) + "\n"
    text += (ROOT / "conf" / "config.yaml").read_text().split("\n\n", 1)[1]
    return "\n".join(f"  {line}" if line else "" for line in text.rstrip().split("\n")) + "\n"
