"""What routes declare about who may call them, and the refusal of a request.

A route declares its scope with `needs`, or is `public` (no key), or a `health` route (no check at all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shared.api_keys import Scope
from shared.errors import Rejected

F = TypeVar("F", bound=Callable[..., Any])


class Denied(Rejected):
    """The request is refused. `reason` is the code of the answer."""

    code = "denied"

    def __init__(self, status: int, reason: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.title = title


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route needs."""

    scope: Scope | None
    """None: no key, unless `any_key` is set."""
    any_key: bool = False
    """Whether a valid key is needed, whatever its scopes."""
    check_host: bool = True
    is_page: bool = False
    """Whether browsers show it, so that they may ask their user for a key, and its own scripts may send any content."""
    for_browsers: bool = False
    """Whether a browser token is accepted, also from pages of the configured origins (CORS)."""


HEALTH: Final = Rule(None, check_host=False)
PUBLIC: Final = Rule(None)
ANY_KEY: Final = Rule(None, any_key=True)
"""For paths that no route has: only callers with a key learn that."""
_RULE: Final = "__loopwright_rule__"


def needs(scope: Scope, *, page: bool = False, for_browsers: bool = False) -> Callable[[F], F]:
    """Declare the scope of a route, below its `@app.get(...)`."""
    return _declare(Rule(scope, is_page=page, for_browsers=for_browsers))


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
