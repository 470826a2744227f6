"""Who may do what: Host, Origin, API keys and scopes, for every HTTP API.

`Access` decides. Two thin adapters ask it about each request: `access_middleware.py` for ASGI apps and
`shared/stream/web_access.py` for the views of the stream engine. A route declares its scope with `needs`, or is
`public` (no key), or a `health` route (no check at all). The reasons are in `docs/decisions/access.md`.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import structlog

from shared.adapters.clock import SystemClock
from shared.adapters.key_file import KeyFile
from shared.api_keys import SCOPES, KeyFault, Scope, key_fault
from shared.errors import Misconfigured, Rejected
from shared.events import from_ms
from shared.ports import Clock
from shared.request_origin import (
    Authority,
    BadHost,
    is_in,
    is_known_host,
    is_loopback,
    is_same_origin,
    normal_name,
    parse_authority,
    parse_origin,
)
from shared.settings import Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
F = TypeVar("F", bound=Callable[..., Any])
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS_READ: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"accept",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }
)
SINGLE_HEADERS: Final = frozenset({"host", "origin", "authorization", "content-type"})
JSON_TYPES: Final = frozenset({"application/json", "application/x-ndjson"})
FAULTS: Final[dict[KeyFault, str]] = {
    "malformed": "the credentials are not an API key of Loopwright (lw_...)",
    "unknown": "this API key does not exist",
    "revoked": "this API key was revoked",
    "expired": "this API key has expired",
}
log = structlog.get_logger(__name__)


class Denied(Rejected):
    """The request is refused. `reason` is the code of the answer."""

    code = "denied"

    def __init__(self, status: int, reason: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.title = title


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    name: str
    """The key's name, which commands and erasures record as `issued_by`."""
    scopes: frozenset[Scope]
    key_id: str | None = None
    """None without keys."""


ANONYMOUS: Final = Caller("operator", frozenset(SCOPES) - {"erase"})
"""The caller while no keys are configured. An erasure cannot be undone and must name who asked for it, so it always
needs a key."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route needs."""

    scope: Scope | None
    """None: no key."""
    check_host: bool = True
    is_page: bool = False
    """Whether browsers show it, so that they may ask their user for a key, and its own scripts may send any content."""


HEALTH: Final = Rule(None, check_host=False)
PUBLIC: Final = Rule(None)
ANY_KEY: Final = Rule("read")
"""For paths that no route has: only callers with a key learn that."""
_RULE: Final = "__loopwright_rule__"


def needs(scope: Scope, *, page: bool = False) -> Callable[[F], F]:
    """Declare the scope of a route, below its `@app.get(...)`."""
    return _declare(Rule(scope, is_page=page))


def public(endpoint: F) -> F:
    """Declare that a route needs no key. Host and Origin are checked."""
    return _declare(PUBLIC)(endpoint)


def health(endpoint: F) -> F:
    """Declare a route for orchestrators and Prometheus, which use any host name. It shows nothing about users."""
    return _declare(HEALTH)(endpoint)


def _declare(rule: Rule) -> Callable[[F], F]:
    def declare(endpoint: F) -> F:
        setattr(endpoint, _RULE, rule)
        return endpoint

    return declare


def declared_rule(endpoint: object) -> Rule | None:
    """Return the rule that a route's function declares, or None."""
    rule = getattr(endpoint, _RULE, None)
    return rule if isinstance(rule, Rule) else None


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


class Access:
    """Decides whether a request is allowed. Thread-safe."""

    def __init__(
        self,
        keys: KeyFile | None = None,
        *,
        hosts: Iterable[str] = (),
        proxies: Iterable[Network] = (),
        clock: Clock | None = None,
    ) -> None:
        """Store the parts.

        Args:
            keys: The keys. None: nobody needs one.
            hosts: Host names of this service, besides localhost and IP addresses.
            proxies: Addresses whose X-Forwarded-Host and X-Forwarded-Proto are believed.
            clock: The time, for keys that expire.

        """
        self.keys = keys
        self._hosts = frozenset(normal_name(host) for host in hosts)
        self._proxies = tuple(proxies)
        self._clock = clock or SystemClock()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the access that the settings describe, and log whether keys are needed.

        Raises:
            Misconfigured: if the service would listen on the network without keys.

        """
        clock = SystemClock()
        if settings.api_keys is not None:
            keys = KeyFile(settings.api_keys, clock)
            keys.keys()
            return cls(keys, hosts=settings.hosts, proxies=settings.trusted_proxies, clock=clock)
        if not is_loopback(settings.host) and not settings.allow_without_keys:
            raise Misconfigured(
                f"LOOPWRIGHT_HOST={settings.host} can be reached from other machines, but no API keys are configured. "
                "Set LOOPWRIGHT_API_KEYS to a file made with `loopwright keys create`, or listen on 127.0.0.1. Set "
                "LOOPWRIGHT_ALLOW_WITHOUT_KEYS=true only if something else decides who can connect."
            )
        reach = (
            "every process on this machine"
            if is_loopback(settings.host)
            else f"all that reach {settings.host}"
        )
        log.warning("no_api_keys", effect=f"{reach} may use this API, except for erasures, which need a key")
        return cls(hosts=settings.hosts, proxies=settings.trusted_proxies, clock=clock)

    @property
    def problem(self) -> str | None:
        """Why requests are refused that have a valid key, or None. For readiness checks."""
        return self.keys.problem if self.keys is not None else None

    def admit(
        self,
        rule: Rule,
        method: str,
        headers: Mapping[str, str],
        peer: str | None,
        *,
        is_socket: bool = False,
    ) -> Caller:
        """Return who sent a request, if it may be answered.

        Args:
            rule: What its route needs.
            method: Its method.
            headers: Its headers, as `read_headers` returns them.
            peer: The address that it came from.
            is_socket: Whether it opens a WebSocket.

        Raises:
            Denied: if it is refused.

        """
        host, scheme = self._addressed_as(headers, peer)
        if not rule.check_host:
            return ANONYMOUS
        self._check_host(host)
        self._check_origin(headers.get("origin"), host, scheme)
        if rule.scope is None:
            return ANONYMOUS
        caller = self.authenticate(headers.get("authorization"))
        authorize(caller, rule.scope)
        if not rule.is_page and not is_socket and method not in SAFE_METHODS:
            _check_content_type(method, headers.get("content-type"))
        return caller

    def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller whose key a header has.

        Raises:
            Denied: if it has no valid key (401), or the keys cannot be read (503).

        """
        if self.keys is None:
            return ANONYMOUS
        table = self.keys.keys()
        if table is None:
            raise Denied(
                503,
                "keys_unavailable",
                "API keys cannot be read",
                "the service cannot read its API keys, so it refuses all requests: its operator finds the reason in "
                "/readyz. Try again later.",
            )
        presented = presented_key(authorization)
        if presented is None:
            raise _unauthorized("the request has no API key")
        found = table.find(presented, from_ms(self._clock.now_ms()))
        if isinstance(found, str):
            raise _unauthorized(FAULTS[found])
        return Caller(found.name, found.scopes, found.id)

    def is_valid(self, caller: Caller, scope: Scope) -> bool:
        """Return whether a caller of an earlier request may still do this, for connections that stay open."""
        if self.keys is None:
            return caller.key_id is None and scope in caller.scopes
        table = self.keys.keys()
        key = table.keys.get(caller.key_id or "") if table is not None else None
        return (
            key is not None and key_fault(key, from_ms(self._clock.now_ms())) is None and scope in key.scopes
        )

    def _addressed_as(self, headers: Mapping[str, str], peer: str | None) -> tuple[Authority, str | None]:
        """Return the host that the client addressed, and its scheme if a trusted proxy reports it."""
        text, scheme = headers.get("host", ""), None
        if self._proxies and is_in(peer, self._proxies):
            # A proxy that appends puts its own value last; what is before it came from the client.
            text = headers.get("x-forwarded-host", text).rpartition(",")[2].strip()
            proto = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
            scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(proto)
        try:
            return parse_authority(text), scheme
        except BadHost as error:
            raise Denied(
                400,
                "bad_host",
                "Bad Host header",
                f"the header Host is {error}: send the name of this service",
            ) from None

    def _check_host(self, host: Authority) -> None:
        if not is_known_host(host.name, self._hosts):
            raise Denied(
                403,
                "foreign_host",
                "Unknown host name",
                f"this service does not know the host name {host.name!r}: use localhost or an IP address, or add the "
                "name to LOOPWRIGHT_HOSTS, for example LOOPWRIGHT_HOSTS='[\"loop.example.org\"]'",
            )

    def _check_origin(self, text: str | None, host: Authority, scheme: str | None) -> None:
        if text is None:  # not a browser, or a page that only reads
            return
        origin = parse_origin(text)
        if origin is None or not is_same_origin(origin, host, scheme):
            raise Denied(
                403,
                "foreign_origin",
                "Foreign page",
                "pages of other origins may not use this service: call it from your server. Behind a proxy, pass the "
                "original Host on, or see LOOPWRIGHT_TRUSTED_PROXIES",
            )


def authorize(caller: Caller, scope: Scope) -> None:
    """Check that a caller has a scope.

    Raises:
        Denied: if it has not (403).

    """
    if scope in caller.scopes:
        return
    if caller.key_id is None:
        raise Denied(
            403,
            "keys_required",
            "API keys are required",
            f"this needs an API key with the scope `{scope}`, and no keys are configured: make one with `loopwright "
            f"keys create NAME --scope {scope}` and set LOOPWRIGHT_API_KEYS (docs/operations.md)",
        )
    raise Denied(
        403,
        "missing_scope",
        "Missing scope",
        f"the API key {caller.name} lacks the scope `{scope}`: use a key that has it, or make one with `loopwright "
        f"keys create NAME --scope {scope}`",
    )


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


def _unauthorized(reason: str) -> Denied:
    return Denied(
        401,
        "unauthorized",
        "Missing or wrong API key",
        f"{reason}: send `Authorization: Bearer lw_...` (in the SDK api_key= or LOOPWRIGHT_API_KEY). An operator makes "
        "keys with `loopwright keys create`.",
    )


def is_json(content_type: str | None) -> bool:
    """Return whether a Content-Type header is application/json."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def _check_content_type(method: str, content_type: str | None) -> None:
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
