"""A container's health check: `python -IS healthcheck.py PORT` exits 0 if the service says that it is ready.

The standard library alone: it runs every few seconds in every container.
"""

from __future__ import annotations

import http.client
import sys


def missing(port: int) -> str | None:
    """What the service on this port still misses; None if it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"does not answer: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"{response.status} {body}"


if __name__ == "__main__":
    sys.exit(missing(int(sys.argv[1])))
