"""Kernels that torch compiles."""

import os
import sys


def compile_in_this_process() -> None:
    """Have torch.compile make kernels in this process, unless the environment says otherwise.

    Otherwise torch starts a pool of as many processes as there are cores, up to 32, each of which
    imports torch, and waits for them when this process ends: 8 to 11 s on a host with an H200,
    for the few kernels that a stage or a server has.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if config := sys.modules.get("torch._inductor.config"):  # it has read the environment
        config.compile_threads = int(os.environ["TORCHINDUCTOR_COMPILE_THREADS"])  # type: ignore[attr-defined]
