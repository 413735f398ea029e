"""A training that is tracked, for outbox.py; prints when it began and logged its last point.

    python outbox_training.py ours FOLDER POINTS     # MLFLOW_TRACKING_URI names the server
    python outbox_training.py async FOLDER POINTS    # by MLflow's asynchronous logging

The folder's name is the experiment's. With DIES in the environment it ends by SIGKILL behind its
last point. A file of its own, so that a Python with nothing but mlflow-skinny can run it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

SECONDS_A_POINT = 0.005


def main(way: str, folder: Path, points: int) -> None:
    found: dict[str, object] = {}
    try:
        (ours if way == "ours" else asynchronous)(folder, points, found)
    except Exception as error:
        found["raised"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        report(found)


def ours(folder: Path, points: int, found: dict[str, object]) -> None:
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking import client

    config = TrackingConfig(enabled=True, uri=None, experiment=folder.name, upload_weights=False)
    run = client.start_stage(folder, stage="finetune", config=config, params={"seed": 1}, inputs={})
    found["began"] = time.time()
    for step in range(points):
        time.sleep(SECONDS_A_POINT)
        client.log_metrics({"loss": 1.0}, step=step)
    ends(found)
    run.finish("FINISHED", None)


def asynchronous(folder: Path, points: int, found: dict[str, object]) -> None:
    import mlflow

    mlflow.set_experiment(folder.name)
    with mlflow.start_run():
        mlflow.log_params({"seed": 1}, synchronous=False)
        found["began"] = time.time()
        for step in range(points):
            time.sleep(SECONDS_A_POINT)
            mlflow.log_metrics({"loss": 1.0}, step=step, synchronous=False)
        ends(found)


def ends(found: dict[str, object]) -> None:
    found["last_point"] = time.time()
    report(found)
    if "DIES" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)


def report(found: dict[str, object]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
