"""How long stage=prepare takes, and how much memory, by the number of rows.

    python -m bench.prepare_speed ROWS [ROWS ...] --output bench/results/prepare_speed.json

Sizes that the file has already are kept, if they were measured at the same commit. Rows are of
about 1 KB: a question and an answer of words of this documentation in random order. One question in
fifty is another one with a typing error. Each size runs in a process of its own, with the bundled
model's tokenizer. Memory is the most that the process held (ru_maxrss), its libraries included.
Where other jobs run (`load`: processes that wanted a core, on average over 15 minutes), the time of
the processor counts, and not that of the clock. Up to 100,000 rows, beside it, the time to read the
same rows from Parquet, and pyarrow's own time to read them into Python's objects.
"""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.origin import origin, parser_of

ROOT = Path(__file__).resolve().parents[1]
QUESTION, ANSWER = 30, 120  # words
REPEATED = 50


def rows(count: int) -> Any:
    """Rows of about 1 KB, the same for the same count."""
    chance = random.Random(0)
    text = " ".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))
    words = sorted(set(re.findall(r"\b[a-z]{3,12}\b", text)))
    question = ""
    for number in range(count):
        if number % REPEATED == REPEATED - 1:
            question = "x" + question
        else:
            question = " ".join(chance.choices(words, k=QUESTION)) + f" {number}"
        answer = " ".join(chance.choices(words, k=ANSWER))
        turns = [("human", question), ("gpt", answer)]
        yield {"conversations": [{"from": who, "value": text} for who, text in turns]}


def write(folder: Path, count: int) -> int:
    """A folder of data, with `count` training rows in Parquet. Returns their bytes as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, batch, writer = 0, [], None
    for row in rows(count):
        batch.append(row)
        size += sum(len(turn["value"]) for turn in row["conversations"])
        if len(batch) == 10_000:
            table = pa.Table.from_pylist(batch)
            writer = writer or pq.ParquetWriter(folder / "train.parquet", table.schema)
            writer.write_table(table)
            batch = []
    if batch:
        table = pa.Table.from_pylist(batch)
        writer = writer or pq.ParquetWriter(folder / "train.parquet", table.schema)
        writer.write_table(table)
    assert writer
    writer.close()
    test = {"prompt": "How much is a wire transfer?", "completion": "It is free."}
    (folder / "test.jsonl").write_text(json.dumps(test) + "\n")
    return size


def prepare(folder: Path) -> dict[str, float]:
    """Seconds and memory of the stage in this process."""
    from pipeline.config.schema import load
    from pipeline.orchestration.compose import compose
    from pipeline.stages import prepare as stage

    model = shutil.copytree(ROOT / "data" / "base_model", folder / "model")
    settings = json.loads((model / "config.json").read_text())
    settings["max_position_embeddings"] = 4096
    (model / "config.json").write_text(json.dumps(settings))
    words = [f"data.folder={folder}", "data.train=[train.parquet]", "data.test=[test.jsonl]"]
    config = load(compose(["data=files", *words, f"model.path={model}",
                           "model=local", "model.name=b", "prepare.max_length=2048"]))  # fmt: skip
    out = folder / "out"
    out.mkdir()
    began, used = time.perf_counter(), time.process_time()
    outcome = stage.run(config, {}, out)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "kept": outcome.metrics["train_rows"] + outcome.metrics["validation_rows"],
    }


def reading(folder: Path) -> dict[str, float]:
    """Seconds to read the Parquet file as rows, and with pyarrow alone."""
    import pyarrow.parquet as pq

    from pipeline.data.readers.parquet import PARQUET
    from pipeline.data.readers.record import WHOLE, ignore

    file = folder / "train.parquet"

    def plain() -> int:
        with pq.ParquetFile(file) as parquet:
            return sum(len(batch.to_pylist()) for batch in parquet.iter_batches(1_000))

    def ours() -> int:
        return sum(1 for _ in PARQUET.read(file, "train.parquet", WHOLE, ignore))

    times = {}
    for name, read in (("pyarrow_seconds", plain), ("reader_seconds", ours)):
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - began)
        times[name] = round(best, 3)
    times["share_of_pyarrow"] = round(times["pyarrow_seconds"] / times["reader_seconds"], 3)
    return times


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--one"]:
        folder = Path(arguments[1])
        print(json.dumps(prepare(folder) | ({} if len(arguments) < 3 else reading(folder))))
        return 0
    parser = parser_of(__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    given = parser.parse_args(arguments)
    typed = f"python -m bench.prepare_speed {' '.join(map(str, given.rows))}"
    report = origin(typed, ("pyarrow", "tokenizers", "numpy", "rapidfuzz"), given.commit)
    earlier = json.loads(given.output.read_text()) if given.output.is_file() else {}
    same = earlier.get("commit") == report["commit"]
    found = [size for size in (earlier["sizes"] if same else []) if size["rows"] not in given.rows]
    for count in given.rows:
        with tempfile.TemporaryDirectory() as place:
            size = write(Path(place), count)
            command = [sys.executable, "-m", "bench.prepare_speed", "--one", place]
            done = subprocess.run(
                [*command, *(["read"] if count <= 100_000 else [])],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            measured = json.loads(done.stdout.splitlines()[-1])
        figures = {"rows": count, "text_mib": size // 2**20, **measured}
        figures["rows_per_cpu_second"] = round(count / figures["cpu_seconds"])
        figures["load"] = round(os.getloadavg()[2], 1)
        found.append(figures)
        print(figures, file=sys.stderr)
        report["sizes"] = sorted(found, key=lambda size: size["rows"])
        given.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
