"""A 405 B fine-tune on eight machines, and programs that replace the cluster's commands."""

from pathlib import Path

from pipeline.config.schema import Config
from pipeline.orchestration import compose

TRAINING = [
    "stage=finetune",
    "experiment=llama3_405b",
    "model.path=/shared/llama3-405b",
    "artifacts=/shared/artifacts",
    "data.train=[my chats.jsonl]",
]
EXPECTED = Path(__file__).parent / "expected"
SLURM = [
    "launcher=slurm",
    "launcher.account=research",
    "launcher.partition=batch",
    "launcher.container_image=registry/pipeline:train",
    "launcher.container_mounts=[/shared:/shared]",
]
KUBERNETES = [
    "launcher=kubernetes",
    "launcher.container_image=registry/pipeline:train",
    "launcher.claim=models",
]


def configured(arguments: list[str]) -> Config:
    return compose.from_command_line(arguments)[2]


def write_program(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
