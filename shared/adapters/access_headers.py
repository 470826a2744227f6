"""The headers of a request that decide about access. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Final

from shared.adapters.access_rules import Denied

HEADERS_READ: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"accept",
        b"access-control-request-method",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }
)
SINGLE_HEADERS: Final = frozenset({"host", "origin", "authorization", "content-type"})
JSON_TYPES: Final = frozenset({"application/json", "application/x-ndjson"})


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers that the checks need, by lower-case name.

    Raises:
        Denied: if one that must be unique is repeated (400): two readers could take different ones.

    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        lower = raw_name.lower()
        if lower not in HEADERS_READ:
            continue
        name, value = lower.decode("ascii"), raw_value.decode("latin-1").strip()
        if name not in headers:
            headers[name] = value
        elif name in SINGLE_HEADERS:
            raise Denied(400, "bad_request", "Repeated header", f"send the header {name} once")
        else:
            headers[name] += f",{value}"
    return headers


def presented_key(authorization: str | None) -> str | None:
    """Return the key in a header: `Bearer KEY`, or `Basic` with the key as password. None if there is none."""
    scheme, _, credentials = (authorization or "").partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "bearer":
        return credentials or None
    if scheme.lower() == "basic":
        try:
            _, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return password or None
    return None


def is_json(content_type: str | None) -> bool:
    """Return whether a Content-Type header is application/json."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def check_content_type(method: str, content_type: str | None) -> None:
    """Check that a body is JSON, or JSON lines.

    Raises:
        Denied: if it is not (415).

    """
    # A foreign page can send the other types without asking the service first (CORS).
    essence = (content_type or "").partition(";")[0].strip().lower()
    if essence in JSON_TYPES or (essence.startswith("application/") and essence.endswith("+json")):
        return
    if method == "DELETE" and not essence:
        return
    raise Denied(
        415,
        "media_type",
        "Not JSON",
        "the Content-Type is not application/json: send the body as JSON, with Content-Type: application/json",
    )
