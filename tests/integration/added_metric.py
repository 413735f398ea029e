"""A metric, "starts with the right word", added through the table of metrics alone; then evaluate.

test_added_engine_and_metric.py runs `python -m tests.integration.added_metric FOLDER`, so that the
table of the tests' own process stays as it is.
"""

import shutil
import sys
from pathlib import Path

from pipeline.evaluation.metrics import METRICS, Metric, of_texts
from pipeline.evaluation.overlap import normalise


def same_start(answer: str, expected: str) -> bool:
    return normalise(answer).split()[:1] == normalise(expected).split()[:1]


START = Metric(
    name="same_start",
    title="right start",
    meaning="share of the answers that begin with the right word",
    values=of_texts(same_start),
)


def main(folder: Path) -> int:
    from pipeline.__main__ import main as run
    from pipeline.stages import evaluate
    from tests.integration.quantization_case import configure, make_inputs
    from tests.made_artifacts import make_artifact

    METRICS.add(START)
    for command in (["--help"], ["stage=doctor", f"artifacts={folder}"]):
        print(f"== {command[0]}", flush=True)
        if code := run(command):
            return code
    inputs = make_inputs(folder / "artifacts")
    model = inputs["merge"].path
    files = {f"none/{f.name}": f.read_bytes() for f in model.iterdir() if f.is_file()}
    quantized = make_artifact(
        folder, "quantize", "quantized", files=files, config={"quantize": {"format": "none"}}
    )
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    config = configure(f"model.path={model}", "evaluate.metrics=[exact_match,same_start]")
    outcome = evaluate.run(config, {**inputs, "quantize": quantized}, out)
    print("== metrics\n" + " ".join(sorted(outcome.metrics)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
