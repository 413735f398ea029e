"""Where the server listens, and what to type to ask it. Imports neither server nor engine."""

import errno
import json
import os
import socket
from pathlib import Path

from pipeline.core.console import get_console
from pipeline.core.errors import Busy, ConfigError

# The environment variable with the key that clients must give.
API_KEY = "SERVE_API_KEY"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        Busy: the port is in use. ConfigError: the address is not this machine's, or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except socket.gaierror as error:
        raise ConfigError(f"serve.host={host} is no address ({error.strerror})") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except PermissionError as error:
        listening.close()
        raise ConfigError(f"serve.port={port} is reserved: choose one above 1023") from error
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise Busy(
                f"port {port} of {host} is in use: stop what listens there (`ss -ltnp`), or give "
                f"another, as serve.port={port + 1}, or serve.port=0 for any free one"
            ) from error
        raise ConfigError(f"serve.host={host} cannot be listened on ({error.strerror})") from error
    return listening


def how_to_call(base_url: str, model: str, with_key: bool) -> str:
    """What a person can type to get an answer."""
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


def base_url(listening: socket.socket) -> str:
    """Where clients reach the API from this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def warn_if_open(listening: socket.socket, keys_file: Path | None) -> None:
    """Say so when anyone in the network may ask."""
    host = listening.getsockname()[0]
    asks = keys_file or os.environ.get(API_KEY)
    if not host.startswith("127.") and host != "::1" and not asks:
        get_console().print(
            f"[yellow]anyone who reaches {host} can use this server: set {API_KEY} or "
            "serve.keys_file to ask for a key"
        )
