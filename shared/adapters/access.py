"""Who may do what: Host, Origin, API keys and scopes, for every HTTP API.

`Access` decides. Two thin adapters ask it about each request: `access_middleware.py` for ASGI apps and
`shared/stream/web_access.py` for the views of the stream engine. Routes declare what they need
(`access_rules.py`). The reasons are in `docs/decisions/access.md`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

import structlog

from shared.adapters.access_headers import check_content_type, presented_key
from shared.adapters.access_rules import Denied, Rule
from shared.adapters.clock import SystemClock
from shared.adapters.key_file import KeyFile
from shared.api_keys import SCOPES, KeyFault, Scope, key_fault
from shared.errors import Misconfigured
from shared.events import from_ms
from shared.ports import Clock
from shared.request_origin import (
    Authority,
    BadHost,
    Origin,
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
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
FAULTS: Final[dict[KeyFault, str]] = {
    "malformed": "the credentials are not an API key of Loopwright (lw_...)",
    "unknown": "this API key does not exist",
    "revoked": "this API key was revoked",
    "expired": "this API key has expired",
}
log = structlog.get_logger(__name__)


TOKEN_PREFIX: Final = "lwt_"  # noqa: S105 - how browser tokens begin


@dataclass(frozen=True, slots=True)
class BrowserGrant:
    """What a browser token allows: feedback on one response."""

    response_id: str
    user_id: str | None
    """The only user whose feedback it may be; None: any."""


class TokenCheck(Protocol):
    """Checks browser tokens."""

    def redeem(self, token: str) -> BrowserGrant:
        """Return what a token allows. Raises `Denied` if it is not valid (401)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    name: str
    """The key's name, which commands and erasures record as `issued_by`."""
    scopes: frozenset[Scope]
    key_id: str | None = None
    """None without keys."""
    grant: BrowserGrant | None = None
    """Set for a browser token: the request may do only this."""


ANONYMOUS: Final = Caller("operator", frozenset(SCOPES) - {"erase"})
"""The caller while no keys are configured. An erasure cannot be undone and must name who asked for it, so it always
needs a key."""


class Access:
    """Decides whether a request is allowed. Thread-safe."""

    def __init__(
        self,
        keys: KeyFile | None = None,
        *,
        hosts: Iterable[str] = (),
        proxies: Iterable[Network] = (),
        tokens: TokenCheck | None = None,
        origins: Iterable[str] = (),
        clock: Clock | None = None,
    ) -> None:
        """Store the parts.

        Args:
            keys: The keys. None: nobody needs one.
            hosts: Host names of this service, besides localhost and IP addresses.
            proxies: Addresses whose X-Forwarded-Host and X-Forwarded-Proto are believed.
            tokens: Checks browser tokens. None: none are accepted.
            origins: Origins whose pages may use browser tokens.
            clock: The time, for keys that expire.

        Raises:
            Misconfigured: if one of `origins` is none.

        """
        self.keys = keys
        self._hosts = frozenset(normal_name(host) for host in hosts)
        self._proxies = tuple(proxies)
        self._tokens = tokens
        self._origins = frozenset(_configured_origin(origin) for origin in origins)
        self._clock = clock or SystemClock()

    @classmethod
    def from_settings(
        cls, settings: Settings, *, tokens: TokenCheck | None = None, origins: Iterable[str] = ()
    ) -> Self:
        """Return the access that the settings describe, and log whether keys are needed.

        Raises:
            Misconfigured: if the service would listen on the network without keys.

        """
        clock, keys = SystemClock(), None
        if settings.api_keys is not None:
            keys = KeyFile(settings.api_keys, clock)
            keys.keys()
        elif not is_loopback(settings.host) and not settings.allow_without_keys:
            raise Misconfigured(
                f"LOOPWRIGHT_HOST={settings.host} can be reached from other machines, but no API keys are configured. "
                "Set LOOPWRIGHT_API_KEYS to a file made with `loopwright keys create`, or listen on 127.0.0.1. Set "
                "LOOPWRIGHT_ALLOW_WITHOUT_KEYS=true only if something else decides who can connect."
            )
        else:
            reach = (
                "every process on this machine"
                if is_loopback(settings.host)
                else f"all that reach {settings.host}"
            )
            log.warning(
                "no_api_keys", effect=f"{reach} may use this API, except for erasures, which need a key"
            )
        return cls(
            keys,
            hosts=settings.hosts,
            proxies=settings.trusted_proxies,
            tokens=tokens,
            origins=origins,
            clock=clock,
        )

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
        presented = presented_key(headers.get("authorization"))
        is_token = presented is not None and presented.startswith(TOKEN_PREFIX)
        # A page of a configured origin may use a token, but no key: a key in a page is everybody's.
        if not (is_token and self.cors_origin(rule, headers)):
            self._check_origin(headers.get("origin"), host, scheme)
        if rule.scope is None and not rule.any_key:
            return ANONYMOUS
        if presented is not None and is_token:
            caller = self._redeem(rule, presented)
        else:
            caller = self._authenticate(presented)
            if rule.scope is None:
                return caller
            authorize(caller, rule.scope)
        if not rule.is_page and not is_socket and method not in SAFE_METHODS:
            check_content_type(method, headers.get("content-type"))
        return caller

    def preflight(self, rule: Rule, headers: Mapping[str, str], peer: str | None) -> str:
        """Return the origin of a page that asks whether it may send a request.

        Raises:
            Denied: if it may not.

        """
        host, _ = self._addressed_as(headers, peer)
        self._check_host(host)
        origin = self.cors_origin(rule, headers)
        if origin is None:
            raise _foreign_page()
        return origin

    def cors_origin(self, rule: Rule, headers: Mapping[str, str]) -> str | None:
        """Return the origin of the page that sends a request, if it may read the response of this route."""
        text = headers.get("origin")
        if text is None or not rule.for_browsers or not self._origins:
            return None
        return text if parse_origin(text) in self._origins else None

    def _redeem(self, rule: Rule, token: str) -> Caller:
        if not rule.for_browsers:
            raise Denied(
                403,
                "token_not_accepted",
                "Browser tokens are not accepted here",
                "a browser token is for POST /v1/feedback only: use an API key for this, from your server",
            )
        if self._tokens is None:
            raise _unauthorized(
                "this service accepts no browser tokens (LOOPWRIGHT_FEEDBACK_TOKEN_KEY is not set)"
            )
        return Caller("browser", frozenset(), grant=self._tokens.redeem(token))

    def _authenticate(self, presented: str | None) -> Caller:
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
            raise _foreign_page()


def _configured_origin(text: str) -> Origin:
    origin = parse_origin(text)
    if origin is None:
        raise Misconfigured(
            f"LOOPWRIGHT_FEEDBACK_ORIGINS: {text!r} is not the origin of a page: write scheme, host and, if it is not "
            'the default, port, for example "https://app.example.org"'
        )
    return origin


def _foreign_page() -> Denied:
    return Denied(
        403,
        "foreign_origin",
        "Foreign page",
        "pages of other origins may not use this service: call it from your server, or send feedback with a browser "
        "token from an origin in LOOPWRIGHT_FEEDBACK_ORIGINS. Behind a proxy, pass the original Host on, or see "
        "LOOPWRIGHT_TRUSTED_PROXIES",
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


def _unauthorized(reason: str) -> Denied:
    return Denied(
        401,
        "unauthorized",
        "Missing or wrong API key",
        f"{reason}: send `Authorization: Bearer lw_...` (in the SDK api_key= or LOOPWRIGHT_API_KEY). An operator makes "
        "keys with `loopwright keys create`.",
    )
