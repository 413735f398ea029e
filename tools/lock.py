"""Write the lock files from pyproject.toml: `make lock`, with the environment's uv.

requirements.lock       every package but torch, with its hashes, for Python 3.11 and 3.12 on Linux
requirements-cpu.lock   torch, CPU build, from the wheels in the folder UV_FIND_LINKS
requirements-cuda.lock  torch, CUDA build, and the CUDA libraries that only torch needs
extras/NAME.lock        what the extra NAME adds to requirements.lock, or all of an environment of
                        its own, whose requirements are in extras/NAME.in

`python tools/lock.py NAME...` writes those of the extras alone.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = (
    shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    or "uv"
)
# torch's CUDA build and its own dependencies; nvidia-ml-py and nvidia-modelopt are not among them.
CUDA_LIBRARIES = re.compile(
    r"^(torch=|cuda-|triton=|nvidia-(cublas|cuda-|cudnn|cufft|cufile|curand|cusolver|cusparse|nccl|nvjitlink|nvshmem|nvtx))"
)


def resolve() -> list[str]:
    """Entries (`name==version ; marker --hash=…`) that uv resolves, one string per entry.

    Runs in a temporary folder without UV_FIND_LINKS, because uv.lock would name that index.
    """
    environment = {k: v for k, v in os.environ.items() if k != "UV_FIND_LINKS"}
    command = [
        UV,
        "export",
        "-q",
        "--all-groups",
        "--no-emit-project",
        "--no-annotate",
        "--no-header",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "README.md", "LICENSE", "pipeline/__init__.py"):
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, check=True
        )
    listing = done.stdout.replace(" ; platform_machine == 'x86_64' and sys_platform == 'linux'", "")
    return [e + "\n" for e in re.split(r"\n(?=\S)", listing.strip())]


def extras() -> list[str]:
    """The names of all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [path.stem for path in (ROOT / "extras").glob("*.in")]
    return sorted([*project["optional-dependencies"], *own])


def lock_extra(name: str) -> int:
    """Write extras/NAME.lock; gives the number of its packages.

    Each version of Python is resolved by itself: uv's universal resolution also tries those that we
    do not support, where a library may ask for what the core does not have (numpy 2).
    """
    own = ROOT / "extras" / f"{name}.in"
    core: set[str] = set()
    with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
        arguments = [str(own)]
        if own.is_file():
            arguments += ["--no-deps"] if "# lock: --no-deps" in own.read_text() else []
        else:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            file.write("\n".join(project["optional-dependencies"][name]))
            file.flush()
            arguments = ["-c", "requirements.lock", "-c", "requirements-cuda.lock", file.name]
            for lock in ROOT.glob("requirements*.lock"):
                core |= set(re.findall(r"^[^=\s]+(?===)", lock.read_text(), re.M))
        older, newer = (compile_for(version, arguments) for version in ("3.11", "3.12"))
    entries = [
        entry if entry in newer else entry.replace(" \\", " ; python_full_version < '3.12' \\", 1)
        for entry in older
    ] + [
        entry.replace(" \\", " ; python_full_version >= '3.12' \\", 1)
        for entry in newer
        if entry not in older
    ]
    entries = [entry for entry in entries if entry.split("==")[0] not in core]
    entries.sort(key=lambda entry: entry.split("==")[0])
    (ROOT / "extras" / f"{name}.lock").write_text("".join(entries))
    return len(entries)


def compile_for(version: str, arguments: list[str]) -> list[str]:
    """The entries, with hashes, for one version of Python on Linux x86-64.

    Without pyproject.toml's [tool.uv]: what the core leaves out (Ray) may be what an extra brings.
    """
    command = [
        UV,
        "pip",
        "compile",
        "-q",
        "--no-config",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
    ]
    command += ["--python-version", version, "--python-platform", "x86_64-manylinux_2_35"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True
    )
    return [entry + "\n" for entry in re.split(r"\n(?=\S)", done.stdout.strip())]


def main() -> None:
    if not sys.argv[1:]:
        lock_core()
    for name in sys.argv[1:] or extras():
        print(f"extra {name}: {lock_extra(name)} packages", file=sys.stderr)


def lock_core() -> None:
    """Write the lock files of the core and of torch."""
    entries = resolve()
    cuda = [e for e in entries if CUDA_LIBRARIES.match(e)]
    rest = [e for e in entries if not CUDA_LIBRARIES.match(e)]
    wheels = sorted(Path(os.environ["UV_FIND_LINKS"]).glob("torch-*+cpu-*.whl"))
    version = wheels[0].name.split("-")[1]
    hashes = [hashlib.sha256(w.read_bytes()).hexdigest() for w in wheels]
    cpu = f"torch=={version} " + " ".join(f"--hash=sha256:{h}" for h in hashes) + "\n"
    (ROOT / "requirements.lock").write_text("".join(rest))
    (ROOT / "requirements-cuda.lock").write_text("".join(cuda))
    (ROOT / "requirements-cpu.lock").write_text(cpu)
    print(f"{len(rest)} packages, and {len(cuda)} of the CUDA build", file=sys.stderr)


if __name__ == "__main__":
    main()
