"""Write the lock files from pyproject.toml: `make lock` (needs uv).

requirements.lock       every package but torch, with its hashes, for Python 3.11 and 3.12 on Linux
requirements-cpu.lock   torch, CPU build, from the wheels in the folder that UV_FIND_LINKS names
requirements-cuda.lock  torch, CUDA build, and the CUDA libraries that it alone needs
"""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# torch's CUDA build and what it alone depends on; nvidia-ml-py, -modelopt and -resiliency-ext are not of them.
CUDA_LIBRARIES = re.compile(
    r"^(torch=|cuda-|triton=|nvidia-(cublas|cuda-|cudnn|cufft|cufile|curand|cusolver|cusparse|nccl|nvjitlink|nvshmem|nvtx))"
)


def resolve(requirements: str, *options: str) -> list[str]:
    """Entries (`name==version ; marker --hash=…`) that uv resolves, one string an entry."""
    command = ["uv", "pip", "compile", "-q", "--universal", "--python-version", "3.11"]
    command += ["--no-annotate", "--no-header", "--generate-hashes", *options, "-"]
    environment = {k: v for k, v in os.environ.items() if k != "UV_FIND_LINKS"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input=requirements, text=True, stdout=subprocess.PIPE, check=True
    )
    return [e + "\n" for e in re.split(r"\n(?=\S)", done.stdout.strip())]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    entries = resolve("\n".join(wanted))
    cuda = [e for e in entries if CUDA_LIBRARIES.match(e)]
    rest = [e for e in entries if not CUDA_LIBRARIES.match(e)]
    # Installed only beside the CUDA build, so uv's conditions on the platform are not theirs to repeat.
    cuda = [re.sub(r" ; [^\\]*", " ", e, count=1) for e in cuda]
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
