"""The server's address, and commands that call it. Imports neither the server nor an engine."""

import errno
import json
import os
import socket
from pathlib import Path

from pipeline.core.console import get_console
from pipeline.core.errors import Busy, ConfigError

# The environment variable with the API key that clients must send.
API_KEY = "SERVE_API_KEY"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0 means any free port.

    Raises:
        Busy: the port is in use.
        ConfigError: the address does not belong to this machine, or the port is reserved.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except socket.gaierror as error:
        raise ConfigError(
            f"serve.host={host} cannot be resolved ({error.strerror}): give an address of this "
            "machine, such as 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except PermissionError as error:
        listening.close()
        raise ConfigError(f"serve.port={port} is reserved: choose a port above 1023") from error
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise Busy(
                f"port {port} of {host} is in use: stop the process that uses it (`ss -ltnp`), or "
                f"give another port, such as serve.port={port + 1}, or serve.port=0 for any free "
                "one"
            ) from error
        raise ConfigError(
            f"cannot listen on serve.host={host} ({error.strerror}): give an address of this "
            "machine, such as 127.0.0.1, or 0.0.0.0 for all"
        ) from error
    return listening


def how_to_call(base_url: str, model: str, with_key: bool) -> str:
    """Commands that a user can copy to send a request."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    header = f' -H "Authorization: Bearer ${API_KEY}"' if with_key else ""
    key = f'os.environ["{API_KEY}"]' if with_key else '"none"'
    imports = "import os; " if with_key else ""
    return f"""\
curl {base_url}/chat/completions{header} -H "Content-Type: application/json" \\
  -d '{body}'

python - <<'EOF'
{imports}from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key={key})
for chunk in client.chat.completions.create(
    model="{model}", stream=True, messages=[{{"role": "user", "content": "Hello"}}]
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
EOF"""


def base_url(listening: socket.socket, *, secure: bool = False) -> str:
    """The API's URL for clients on this machine. secure: the server has a certificate."""
    scheme = "https" if secure else "http"
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}/v1" if ":" in host else f"{scheme}://{host}:{port}/v1"


def warn_if_open(listening: socket.socket, keys_file: Path | None) -> None:
    """Warn if anyone on the network may use the server."""
    host = listening.getsockname()[0]
    requires_key = keys_file or os.environ.get(API_KEY)
    if not host.startswith("127.") and host != "::1" and not requires_key:
        get_console().print(
            f"[yellow]anyone who can reach {host} can use this server: set {API_KEY} or "
            "serve.keys_file to require a key"
        )
