"""Check Host and Origin of requests to operator APIs (console, trainer), so that only their own pages may use them.

These APIs have no passwords and listen on the loopback interface, which any web page in the operator's browser can
reach. Three rules keep foreign pages out: commands must be JSON (which a foreign page cannot send without a CORS
preflight), `Origin` must equal this host, and `Host` must be an address or a configured name (otherwise a foreign
name that resolves to 127.0.0.1 would pass: DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from shared.errors import Rejected


class Forbidden(Rejected):
    """The request comes from a foreign host name or page."""

    code = "forbidden"


def check_request_origin(headers: Mapping[str, str], names: Collection[str]) -> None:
    """Raise `Forbidden` if Host or Origin of a request are foreign.

    `headers` has lower-case names. `names` are the configured host names, in addition to localhost and IP addresses.
    """
    host = headers.get("host", "")
    _check_host(host, names)
    _check_origin(headers.get("origin"), host)


def is_json(content_type: str | None) -> bool:
    """Return whether a Content-Type header is application/json."""
    return (content_type or "").split(";")[0].strip().lower() == "application/json"


def _check_host(host: str, names: Collection[str]) -> None:
    name = urlsplit(f"//{host}").hostname or ""
    if name != "localhost" and name not in names and not _is_address(name):
        raise Forbidden(
            f"unknown host name {name!r}: use localhost or an IP address, or add the name to "
            "LOOPWRIGHT_CONSOLE_HOSTS or LOOPWRIGHT_TRAINER_HOSTS"
        )


def _check_origin(origin: str | None, host: str) -> None:
    # Only browsers send an Origin.
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Forbidden(f"pages of {origin} may not use this service")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
