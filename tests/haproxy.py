"""The proxy of deploy/proxy on loopback: a real HAProxy, with other addresses in its file."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pipeline.core.paths import ROOT

needs_haproxy = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="HAProxy is not installed: apt-get install haproxy"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until a URL answers 200."""
    for _ in range(1200):
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@dataclass(frozen=True)
class Proxy:
    """socket: where stage=canary sets weights."""

    url: str
    socket: Path


@contextmanager
def haproxy(folder: Path, stable: int, candidate: int) -> Iterator[Proxy]:
    """The proxy before the servers at two ports, once the stable one answers through it."""
    port, admin, log = free_port(), folder / "admin.sock", folder / "haproxy.log"
    text = (ROOT / "deploy/proxy/haproxy.cfg").read_text()
    for old, new in {
        "/run/haproxy/admin.sock": str(admin),
        "bind :8080": f"bind 127.0.0.1:{port}",
        "server-a:8000": f"127.0.0.1:{stable}",
        "server-b:8000": f"127.0.0.1:{free_port()}",
        "server-canary:8000": f"127.0.0.1:{candidate}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    with log.open("wb") as stream:
        process = subprocess.Popen(["haproxy", "-db", "-f", file], stdout=stream, stderr=stream)
    try:
        wait_for(f"http://127.0.0.1:{port}/health/ready", process, log)
        yield Proxy(f"http://127.0.0.1:{port}", admin)
    finally:
        process.terminate()
        process.wait()
