"""Write the lock files from pyproject.toml: `make lock` (needs uv).

requirements.lock       every package but torch, with its hashes, for Python 3.11 and 3.12 on Linux
requirements-cpu.lock   torch, CPU build, from the wheels in the folder UV_FIND_LINKS
requirements-cuda.lock  torch, CUDA build, and the CUDA libraries that only torch needs
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
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


def main() -> None:
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
