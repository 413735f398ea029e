"""Libraries that could take the place of code of ours, each measured beside it.

    pip install --target CANDIDATES pyzmq==27.3.0 structlog==26.1.0 python-json-logger==4.2.0
    python3 -m venv SKINNY && SKINNY/bin/pip install mlflow-skinny==3.17.2
    PYTHONPATH=CANDIDATES python -m bench.compared_libraries SKINNY/bin/python \\
        bench/results/compared_libraries.json

None of the four is among our dependencies. It takes a quarter of an hour. With --parts, such as
--parts framing outbox, the others stay in the file as they are. docs/ARCHITECTURE.md says what was
decided.
"""

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

from bench.origin import origin

PARTS = ("detokenizer", "framing", "json_logs", "command_line", "outbox")
PACKAGES = (
    *("tokenizers", "pyzmq", "uvloop", "python-json-logger", "structlog"),
    *("mlflow", "hydra-core", "omegaconf", "pydantic"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compared_libraries", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("skinny", type=Path, help="a Python with mlflow-skinny alone")
    parser.add_argument("output", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.output.read_text()) if given.output.exists() else {}
    for part in given.parts:
        load = round(os.getloadavg()[0], 2)
        measure = importlib.import_module(f"bench.compared_libraries.{part}").measure
        result = measure(given.skinny) if part == "outbox" else measure()
        command = f"python -m bench.compared_libraries SKINNY FILE --parts {part}"
        found[part] = {**origin(command, PACKAGES), "load_average_before": load, **result}
        given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(json.dumps(found[part], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
