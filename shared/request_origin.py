"""Rules for the headers Host and Origin. Pure; `shared/adapters/access.py` applies them.

A web page in a user's browser can send requests to any address that the browser reaches, also to loopback. Two rules
keep foreign pages out: `Host` must be an address or a known name (otherwise a foreign name that resolves to 127.0.0.1
would pass: DNS rebinding), and `Origin`, which browsers send with every request of a page that may change something,
must be the origin of the service itself or one that an operator has allowed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final, Literal, NamedTuple

Scheme = Literal["http", "https"]
DEFAULT_PORTS: Final[dict[str, int]] = {"http": 80, "https": 443}
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,254}))(?::(?P<port>[0-9]{0,5}))?", re.ASCII
)


class BadHost(ValueError):
    """The text is not a host name or address with an optional port."""


class Authority(NamedTuple):
    """A host and a port, normalised: lower case, no trailing dot, addresses in their shortest form."""

    name: str
    port: int | None
    """None if the text had none."""


class Origin(NamedTuple):
    """An origin, normalised, with its port."""

    scheme: str
    name: str
    port: int


def parse_authority(text: str) -> Authority:
    """Parse a Host header.

    Raises:
        BadHost: if it is none.

    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise BadHost("not a host name or address")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65_536:
        raise BadHost("the port is not between 1 and 65535")
    if match["v6"] is not None:
        try:
            return Authority(str(ipaddress.IPv6Address(match["v6"])), port)
        except ValueError:
            raise BadHost("not an IPv6 address") from None
    name = normal_name(match["name"])
    if not name or ".." in name or name.startswith("."):
        raise BadHost("not a host name")
    return Authority(name, port)


def normal_name(name: str) -> str:
    """Return a host name in lower case, without its trailing dot."""
    return name.lower().removesuffix(".")


def parse_origin(text: str) -> Origin | None:
    """Parse an Origin header. Return None for `null` and whatever is no origin of a web page."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in DEFAULT_PORTS:
        return None
    try:
        name, port = parse_authority(rest)
    except BadHost:
        return None
    return Origin(scheme, name, port or DEFAULT_PORTS[scheme])


def is_known_host(name: str, names: Collection[str]) -> bool:
    """Return whether a normalised host name is localhost, an IP address, or one of `names`."""
    return name == "localhost" or name in names or is_address(name)


def is_same_origin(origin: Origin, host: Authority, scheme: str | None) -> bool:
    """Return whether a page of `origin` belongs to the service that was addressed as `host`.

    `scheme` is that of the browser's request, as far as a trusted proxy has reported it. Without it, a Host without a
    port may stand for port 80 or, behind a proxy that ends TLS, for port 443.
    """
    if origin.name != host.name:
        return False
    if scheme is not None:
        return origin.scheme == scheme and origin.port == (host.port or DEFAULT_PORTS[scheme])
    return origin.port == (host.port or DEFAULT_PORTS[origin.scheme])


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_in(peer: str | None, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Return whether a peer's address is in one of the networks. A mapped IPv4 address counts as IPv4."""
    if peer is None:
        return False
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == network.version and address in network for network in networks)
