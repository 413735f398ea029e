"""TLS by certificate files, which are read again when they change."""

import logging
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.serve import ServeConfig
from pipeline.core.errors import ConfigError

log = logging.getLogger("pipeline.serving")

PASSWORD = "SERVE_TLS_KEY_PASSWORD"  # the environment variable with the private key's password
REFRESH_SECONDS = 1.0
Version = tuple[tuple[int, int, int] | None, ...]


@dataclass
class Certificate:
    """The server's certificate and private key, and the authority of its clients' certificates.

    client_ca: None asks clients for no certificate.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    password: str | None = field(default=None, repr=False)
    _version: Version = ()
    _checked: float = 0.0

    @classmethod
    def from_config(
        cls, settings: ServeConfig, environment: Mapping[str, str] = os.environ
    ) -> "Certificate | None":
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        password = environment.get(PASSWORD) or None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca, password)

    def __post_init__(self) -> None:
        self._version = self._files()
        self._load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self.client_ca:
            try:
                ssl.create_default_context(cafile=self.client_ca)
            except OSError as error:
                raise ConfigError(
                    f"serve.tls_client_ca={self.client_ca} cannot be used ({error}): give a PEM "
                    "file of certificates"
                ) from error

    def uvicorn_settings(self) -> dict[str, Any]:
        """Arguments of uvicorn.Config."""
        return {
            "ssl_certfile": self.cert,
            "ssl_keyfile": self.key,
            "ssl_keyfile_password": self.password,
            "ssl_ca_certs": str(self.client_ca) if self.client_ca else None,
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.client_ca else ssl.CERT_NONE,
        }

    def refresh(self, context: ssl.SSLContext) -> None:
        """Read changed files into the context of the running server; connections that are open
        keep theirs. If they cannot be used, the earlier ones stay."""
        now = time.monotonic()
        if now - self._checked < REFRESH_SECONDS:
            return
        self._checked = now
        if (version := self._files()) == self._version:
            return
        self._version = version
        try:
            self._load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a pair that fits, or none
            self._load_into(context)
        except ConfigError as error:
            log.warning("the changed certificate is ignored, the earlier one stays: %s", error)
        else:
            log.info("certificate read again", extra={"file": str(self.cert)})

    def _files(self) -> Version:
        found: list[tuple[int, int, int] | None] = []
        for file in (self.cert, self.key):
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _load_into(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.cert, self.key, self.password or _no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"serve.tls_cert={self.cert} and serve.tls_key={self.key} cannot be used "
                f"({error}): give a PEM certificate, with its chain, and its private key"
            ) from error


def _no_password() -> str:
    """Called for an encrypted key; without it, OpenSSL would ask the terminal."""
    raise ValueError(f"the key needs a password: set {PASSWORD}")
