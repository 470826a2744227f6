"""Health check of a container: `python -IS healthcheck.py PORT` exits with 0 if the service is ready.

Uses only the standard library, because it runs every few seconds in every container.
"""

from __future__ import annotations

import http.client
import sys


def not_ready_reason(port: int) -> str | None:
    """Return why the service on this port is not ready, or None if it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"no response: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"{response.status} {body}"


if __name__ == "__main__":
    sys.exit(not_ready_reason(int(sys.argv[1])))
