"""Lengths of the training rows: those of the prepared dataset, or the bound of the settings."""

import json

from pipeline.config.finetune import OBJECTIVES
from pipeline.config.schema import Config
from pipeline.core.paths import MANIFEST
from pipeline.planner.workload import Rows

MULTIPLE = 8  # rows are padded to a multiple of so many positions (training/nemo/data.py)


def rows_of(config: Config) -> Rows:
    """The lengths of artifacts/prepare, if it was made with these settings; otherwise every row is
    taken to be as long as prepare.max_length allows, which is what memory must hold."""
    folder = config.artifacts / "prepare"
    wanted = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "prepare")}
    wanted["data"] = config.data.model_dump(mode="json")
    try:
        made = json.loads((folder / MANIFEST).read_text())["config"]
        splits = json.loads((folder / "statistics.json").read_text())["splits"]
        same = made["finetune.objective"] == config.finetune.objective
        if same and all(json.loads(json.dumps(made[name])) == wanted[name] for name in wanted):
            train, validation = splits["train"], splits["validation"]
            longest = -(-(train["length_max"] - 1) // MULTIPLE) * MULTIPLE
            mean = train["tokens"] / train["rows"]
            return Rows(train["rows"], longest, mean, validation["tokens"], known=True)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        pass  # not prepared yet, or by another version: the bound is used
    longest = config.prepare.max_length
    mean = longest * OBJECTIVES[config.finetune.objective].sides
    return Rows(None, longest, mean, 0, known=False)
