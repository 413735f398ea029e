"""Whether a tracking server can be reached, asked without MLflow, which takes seconds to import."""

import socket
import threading
from importlib.metadata import entry_points
from urllib.parse import urlsplit

# Schemes that MLflow knows; plugins bring others.
SCHEMES = {
    "", "file", "http", "https", "sqlite", "mysql", "postgresql", "mssql", "databricks",
    "databricks-uc", "uc",
}  # fmt: skip
PORTS = {"http": 80, "https": 443}
SECONDS = 1.0  # a stage waits no longer


def unreachable(uri: str) -> str:
    """Why nothing can be sent there; empty if nothing speaks against it."""
    try:
        parts = urlsplit(uri)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError as error:  # as for a port above 65535
        return f"it is not an address: {error}"
    if scheme not in SCHEMES and scheme not in _plugins():
        return f"MLflow knows no address that begins with {scheme}:"
    if scheme not in PORTS:
        return ""
    if not host:
        return "it is not an address: it names no host"
    return _connect(host, port or PORTS[scheme])


def _plugins() -> set[str]:
    return {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def _connect(host: str, port: int) -> str:
    found = [f"no answer within {SECONDS:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), SECONDS).close()
            found[0] = ""
        except (OSError, UnicodeError) as error:
            found[0] = f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit
    thread.start()
    thread.join(SECONDS)
    return found[0]
