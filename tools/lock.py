"""Write the lock files from pyproject.toml: `make lock` (needs uv).

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
        "uv",
        "export",
        "-q",
        "--all-groups",
        "--no-emit-project",
        "--no-annotate",
        "--no-header",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
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


EXTRA_PROJECT = """\
[project]
name = "extra"
version = "0"
requires-python = ">=3.11,<3.13"
dependencies = [{dependencies}]
[tool.uv]
environments = [
    "python_version < '3.13' and sys_platform == 'linux' and platform_machine == 'x86_64'"
]
"""


def lock_extra(name: str) -> int:
    """Write extras/NAME.lock; gives the number of its packages."""
    own = ROOT / "extras" / f"{name}.in"
    command = ["uv", "pip", "compile", "-q", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate"]
    core: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        if own.is_file():
            command += [
                str(own),
                *(["--no-deps"] if "# lock: --no-deps" in own.read_text() else []),
            ]
        else:
            # A project of its own: uv then knows that later Pythons need no solution.
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            listed = ", ".join(f'"{entry}"' for entry in project["optional-dependencies"][name])
            (Path(folder) / "pyproject.toml").write_text(EXTRA_PROJECT.format(dependencies=listed))
            for lock in ROOT.glob("requirements*.lock"):
                core |= set(re.findall(r"^[^=\s]+(?===)", lock.read_text(), re.M))
            for bounds in ("requirements.lock", "requirements-cuda.lock"):
                command += ["-c", str(ROOT / bounds)]
            command.append("pyproject.toml")
        done = subprocess.run(
            command,
            cwd=ROOT if own.is_file() else folder,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
    listing = re.sub(r" ; [^\\\n]*sys_platform == 'linux'[^\\\n]*(?= \\)", _marker, done.stdout)
    entries = [e + "\n" for e in re.split(r"\n(?=\S)", listing.strip())]
    entries = [e for e in entries if e.split("==")[0] not in core]
    (ROOT / "extras" / f"{name}.lock").write_text("".join(entries))
    return len(entries)


def _marker(match: re.Match[str]) -> str:
    """The marker of a package, without what holds on every machine that the locks are for."""
    always = {
        "platform_machine == 'x86_64'",
        "sys_platform == 'linux'",
        "implementation_name != 'PyPy'",
        "platform_python_implementation != 'PyPy'",
        "python_full_version < '3.13'",
    }
    rest = [p for p in match.group()[3:].split(" and ") if p not in always]
    return f" ; {' and '.join(rest)}" if rest else ""


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
