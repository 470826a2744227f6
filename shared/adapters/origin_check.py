"""Who may talk to an operator's door (the console, the trainer's) from a browser: its own pages, and nobody else's.

These doors have no passwords: they listen on the loopback interface. A page of another site that is open in the
operator's browser reaches that interface too. Three rules keep it out: a command must be JSON (which a foreign page
cannot send without asking first), an `Origin` must be this host, and `Host` must be an address or a name that was
given (or else a foreign name that resolves to 127.0.0.1 would be this host).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from shared.errors import Rejected


class Forbidden(Rejected):
    """Refused for where the request comes from."""

    code = "forbidden"


def refuse_foreign(headers: Mapping[str, str], names: Collection[str]) -> None:
    """`headers`: of the request, by their names in lower case. `names`: by which the service is known besides
    localhost and addresses. Raises `Forbidden`."""
    host = headers.get("host", "")
    _refuse_foreign_host(host, names)
    _refuse_foreign_origin(headers.get("origin"), host)


def is_json(content_type: str | None) -> bool:
    return (content_type or "").split(";")[0].strip().lower() == "application/json"


def _refuse_foreign_host(host: str, names: Collection[str]) -> None:
    name = urlsplit(f"//{host}").hostname or ""
    if name != "localhost" and name not in names and not _is_address(name):
        raise Forbidden(
            f"this service is not known as {name!r}: use localhost or an address, or add the name to "
            "LOOPWRIGHT_CONSOLE_HOSTS or LOOPWRIGHT_TRAINER_HOSTS"
        )


def _refuse_foreign_origin(origin: str | None, host: str) -> None:
    """Browsers alone name an origin."""
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Forbidden(f"a page of {origin} may not ask this service")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
