"""TLS by certificate files, of real connections."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.core.errors import ConfigError
from pipeline.serving import tls
from pipeline.serving.__main__ import read_settings
from pipeline.serving.address import base_url, listen
from pipeline.serving.middleware.http_limits import HttpConfig, HttpLimits
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.server import _Server
from pipeline.serving.tls import Certificate
from tests.unit.serving.asgi import answering


def make(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """A certificate that signs itself, for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    kind = serialization.PrivateFormat.PKCS8
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(cert.public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, kind, encryption))
    return files


class Served:
    """A server with a certificate, in a thread."""

    def __init__(self, certificate: Certificate) -> None:
        app: Any = answering(lambda request: {"scheme": request.url.scheme})
        app.state = SimpleNamespace(in_flight=InFlight())
        limits = HttpLimits(connections=8, header_bytes=4096, header_seconds=5, stalled_seconds=5)
        config = HttpConfig(
            app, limits, log_config=None, log_level="error", lifespan="off", ws="none",
            **certificate.uvicorn_settings(),
        )  # fmt: skip
        self.server = _Server(config, 0, certificate)
        self.listening = listen("127.0.0.1", 0)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        import asyncio

        asyncio.run(self.server._serve(sockets=[self.listening]))

    def get(self, trusted: Path, client: tuple[Path, Path] | None = None) -> bytes:
        """The response to a request of a client that trusts one certificate."""
        context = ssl.create_default_context(cafile=trusted)
        if client:
            context.load_cert_chain(*client)
        plain = socket.create_connection(self.listening.getsockname(), timeout=10)
        with context.wrap_socket(plain, server_hostname="server") as sock:
            sock.sendall(b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            parts = []
            while part := sock.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


@pytest.fixture
def serving() -> Iterator[Any]:
    opened: list[Served] = []

    def serve(*given: Any) -> Served:
        opened.append(Served(Certificate(*given)))
        return opened[-1]

    yield serve
    for one in opened:
        one.close()


def test_a_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path, serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(tls, "REFRESH_SECONDS", 0)
    cert, key = make(tmp_path, "first")
    second = make(tmp_path, "second")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(cert.read_bytes())
    server = serving(cert, key)
    assert b'{"scheme":"https"}' in server.get(trusted)
    with pytest.raises(ssl.SSLCertVerificationError):
        server.get(second[0])

    os.replace(second[0].rename(tmp_path / "new.pem"), cert)  # without its key: it is ignored
    deadline = time.monotonic() + 5
    while "earlier one stays" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    assert b"200 OK" in server.get(trusted)

    renewed = tmp_path / "renewed.pem"
    renewed.write_bytes(cert.read_bytes())
    os.replace(second[1], key)
    while time.monotonic() < deadline:
        try:
            assert b"200 OK" in server.get(renewed)
            break
        except ssl.SSLCertVerificationError:
            time.sleep(0.02)
    else:
        pytest.fail("the renewed certificate is not used")


def test_clients_need_a_certificate_if_an_authority_is_given(tmp_path: Path, serving: Any) -> None:
    cert, key = make(tmp_path, "server")
    mine, other = make(tmp_path, "mine"), make(tmp_path, "other")
    server = serving(cert, key, mine[0])
    assert b"200 OK" in server.get(cert, mine)
    for client in (None, other):
        with suppress(ssl.SSLError, ConnectionError):  # TLS 1.3 may only end the connection
            assert server.get(cert, client) == b""


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "server", b"word")
    Certificate(cert, key, None, "word")
    with pytest.raises(ConfigError, match="SERVE_TLS_KEY_PASSWORD"):
        Certificate(cert, key)
    with pytest.raises(ConfigError, match="cannot be used"):
        Certificate(cert, key, None, "wrong")
    assert "word" not in repr(Certificate(cert, key, None, "word"))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    cert, key = make(tmp_path, "one")
    other, _ = make(tmp_path, "two")
    for given in ((other, key), (tmp_path / "none.pem", key), (key, key)):
        with pytest.raises(ConfigError, match="give a PEM certificate"):
            Certificate(*given)
    with pytest.raises(ConfigError, match="tls_client_ca"):
        Certificate(cert, key, tmp_path / "none.pem")


@pytest.mark.parametrize(("given", "words"), [
    (["serve.tls_cert=a.pem"], "belong together"),
    (["serve.tls_key=a.pem"], "belong together"),
    (["serve.tls_client_ca=a.pem"], "needs serve.tls_cert"),
])  # fmt: skip
def test_settings_belong_together(tmp_path: Path, given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(given, tmp_path)


def test_the_address_says_https() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert base_url(listening, secure=True).startswith("https://127.0.0.1:")
