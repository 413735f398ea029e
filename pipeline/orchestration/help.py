"""The text of --help: stages, groups, options, settings, read from the files that define them."""

import ast
import re
import tokenize
from pathlib import Path

from pipeline.core.paths import PACKAGE, conf_folders, options_of
from pipeline.orchestration.graph import OUTSIDE, declared_stages

# Stages without a file of their own.
NO_FILE = {
    "all": "The graph from prepare to register, run by DVC, and a summary of the results.",
    "config": "Print the composed configuration.",
}
USAGE = """\
Usage: python -m pipeline stage=<name> [group=option] [key=value] [options]
       python -m pipeline init DIR

From a base checkpoint and a pile of conversations to a served, proven, tracked model.
Commands work in a project: a folder with dvc.yaml and params.yaml, as init makes it. Relative paths
in settings are relative to it.

Options
  -h, --help           this text; with stage=<name>, that stage and its settings
  -m, --multirun       one run for each value that a comma separates, and a table of results
  -c, --cfg job        print the composed configuration; hydra, all: Hydra's own too
  -p, --package NAME   of --cfg: one section; --resolve fills in references
  -i, --info           how the configuration is composed: defaults, search path, plugins
  --traceback          show where an error arose
  --version            print the version

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
  python -m pipeline stage=all                         the whole chain; what is up to date is kept
  python -m pipeline stage=all quantize=int4_awq       the same with another format
  python -m pipeline stage=finetune finetune=sft finetune.max_steps=50
  python -m pipeline stage=finetune --help             what the stage does, and its settings
  python -m pipeline -m stage=all finetune.learning_rate=1e-3,5e-3
                                                       a run for each value; hydra/launcher=joblib
                                                       runs them at once, where it is installed
  python -m pipeline stage=profiles                    how it could be served on this machine
  python -m pipeline stage=build engine.profile=hf-fp32-tp1-pp1
  python -m pipeline stage=serve serve.port=8001
  python -m pipeline stage=retrain retrain.recordings=recorded
                                                       the chain again, once enough data is new
  dvc repro                                            the graph, as params.yaml says
  dvc exp run -S quantize=int4_awq                     the graph as a DVC experiment

Exit codes: 0 done, 1 failed, 2 configuration, 3 data or model, 4 artifact, 5 gate, 6 proof,
7 missing runtime, 8 busy, 9 disk or memory, 130 interrupted.
"""


def help_text() -> str:
    """The whole help, without composing or importing any stage."""
    return USAGE.format(stages=_stages(), groups=_groups(), settings=_settings())


def _stages() -> str:
    """Names in the graph's order, each with the first line of its file's docstring."""
    names = [*declared_stages(), *OUTSIDE]
    lines = [f"  {name:<10} {module_docstring(name).splitlines()[0]}" for name in names]
    lines += [f"  {name:<10} {text}" for name, text in NO_FILE.items()]
    return "\n".join(lines) + "\n"


def module_docstring(stage: str) -> str:
    """Of a stage's file, which is not imported."""
    file = PACKAGE / "stages" / ("import_.py" if stage == "import" else f"{stage}.py")
    with file.open(encoding="utf-8") as stream:
        first = next(tokenize.generate_tokens(stream.readline))  # the rest is not parsed: 0.05 s
    return str(ast.literal_eval(first.string))


def _defaults() -> dict[str, str]:
    """Each group's default option."""
    config = (conf_folders()[0] / "config.yaml").read_text()
    return dict(re.findall(r"^  - (\w+): (\w+)$", config, re.MULTILINE))


def _groups() -> str:
    defaults = _defaults()
    lines = []
    for group in sorted({p.name for c in conf_folders() for p in c.iterdir() if p.is_dir()}):
        lines.append(f"  {group}")
        for option, file in options_of(group).items():
            star = "*" if defaults.get(group) == option else " "
            lines.append(f"  {star} {option:<14} {_first_comment(file)}")
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
        file = conf_folders()[0] / group / f"{option}.yaml"
        if file.is_file():  # experiment: null is none
            settings = re.sub(r"\A(#.*\n)+", "", file.read_text())
            text += f"{group}:\n" + re.sub(r"^(?=.)", "  ", settings, flags=re.MULTILINE) + "\n"
    text += (conf_folders()[0] / "config.yaml").read_text().split("\n\n", 1)[1]
    return "\n".join(f"  {line}" if line else "" for line in text.rstrip().split("\n")) + "\n"
