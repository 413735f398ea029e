"""Add to a vendor's image the packages that our code needs and the image lacks.

    python -m tools.complete server        what serves
    python -m tools.complete server-cpu    and ONNX Runtime
    python -m tools.complete chain         what the stages need, too

What the image has stays as its vendor built it, whatever its version; what it lacks comes from the
hashed lock, with what that needs in turn. Runs in the Dockerfile, before anything is installed.
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
# `packaging` first: it reads what the others need.
SERVER = (
    "packaging pydantic pyyaml hydra-core rich numpy jinja2 tokenizers psutil fastapi uvicorn "
    "uvloop httptools httpx aiohttp llguidance limits prometheus-client opentelemetry-sdk "
    "opentelemetry-exporter-otlp-proto-http opentelemetry-instrumentation-asgi"
).split()
CHAIN = [*SERVER, *"dvc mlflow pyarrow matplotlib rapidfuzz safetensors peft".split()]


def read_lock(text: str) -> dict[str, str]:
    """The lock's entries, with their hashes, by the package's normal name.

    A package has two where it has a version for each Python: their markers tell pip which is meant.
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
    """Install what is lacking until nothing is.

    Args:
        needs: what a package needs in turn; None if it is not installed.
        install: takes entries of the lock.

    Returns:
        The names of what was installed.

    Raises:
        SystemExit: the lock does not have a package, or installing one did not make it available.
    """
    added: list[str] = []
    lacking = [name for name in dict.fromkeys(map(normal, wanted)) if needs(name) is None]
    while lacking:
        if unknown := [name for name in lacking if name not in lock]:
            sys.exit(f"complete: {LOCK.name} has no {', '.join(unknown)}: add it to pyproject.toml")
        if again := [name for name in lacking if name in added]:
            sys.exit(f"complete: {', '.join(again)} was installed and is not there: see above")
        install([lock[name] for name in lacking])
        added += lacking
        next_ones = [normal(n) for name in lacking for n in needs(name) or [name]]
        lacking = [name for name in dict.fromkeys(next_ones) if needs(name) is None]
    return added


def normal(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str) -> list[str] | None:
    """The names of what an installed package needs here, without its extras."""
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
    """With the image's pip, or uv where it has none; over its constraints, which are for others."""
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
