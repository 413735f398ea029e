"""Checks whether the server in this container is ready: exit code 0, or 1 and the reason.

Uses only the standard library, because it runs every few seconds.
"""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 4


def main() -> int:
    port = os.environ.get("NIM_SERVER_PORT") or os.environ.get("NIM_HTTP_API_PORT") or "8000"
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/health/ready", timeout=TIMEOUT_SECONDS
        ):
            return 0
    except urllib.error.HTTPError as error:
        print(error.read(200).decode(errors="replace"))
    except (OSError, ValueError) as error:
        print(f"port {port}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
