"""The sampling of requests that name none, as generation_config.json of a model's folder says it.

    write_defaults(merged, engine_folder, config.engine.sampling)     # {"temperature": 0.0}

Our server and vLLM take such defaults from this file. Without any, both would sample at
temperature 1, at which a model that was tuned for a task answers far worse than it can.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.engine import SamplingConfig
from pipeline.models.files import read_json

FILE = "generation_config.json"
NAMES = tuple(SamplingConfig.model_fields)


def sampling_defaults(base: Mapping[str, Any], settings: SamplingConfig) -> dict[str, float]:
    """The defaults of a model with this generation_config.json, the settings put over it.

    A base model that names its sampling keeps it: `do_sample`, or a temperature, top_p, top_k or
    min_p. Any other one answers with its likeliest tokens.
    """
    named = {name: base[name] for name in NAMES if base.get(name) is not None}
    if base.get("do_sample") is False:
        named["temperature"] = 0.0
    elif "temperature" not in named:
        samples = bool(base.get("do_sample") or named.keys() - {"repetition_penalty"})
        named["temperature"] = 1.0 if samples else 0.0
    return named | settings.model_dump(exclude_none=True)


def write_defaults(source: Path, folder: Path, settings: SamplingConfig) -> dict[str, float]:
    """Write the defaults into a folder's generation_config.json, and return them.

    source: the folder of the tuned model, whose other entries are kept.

    Raises:
        DataError: the source's file is not JSON.
    """
    base, here = _read(source / FILE), _read(folder / FILE)
    defaults = sampling_defaults(base, settings)
    content = {**here, **base, **defaults, "do_sample": defaults["temperature"] > 0}
    # Renamed into place: the file may be a second name of the source's.
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
    return defaults


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, "correct or remove it") if file.is_file() else {}
