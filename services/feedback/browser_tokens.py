"""Browser tokens: JSON Web Tokens (HS256) with which a page may send feedback on one response, and nothing else.

A token is `lwt_` and a JWT with the claims `aud` (always `loopwright-feedback`), `rid` (the response), `iat`, `exp`,
and `sub` if only one user may send feedback. An app's own server may sign them itself (`loopwright.browser_tokens`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import jwt
from pydantic import TypeAdapter, ValidationError

from shared.adapters.access import TOKEN_PREFIX, BrowserGrant
from shared.adapters.access_rules import Denied
from shared.events import Id, from_ms
from shared.ports import Clock
from shared.user_ids import UserId

ALGORITHM: Final = "HS256"
AUDIENCE: Final = "loopwright-feedback"
MAX_LIFETIME_S: Final = 86_400
CLOCK_LEAD_S: Final = 60
"""How far the clock of an app's server may be ahead of ours."""
_RESPONSE_ID: TypeAdapter[str] = TypeAdapter(Id)
_USER_ID: TypeAdapter[str | None] = TypeAdapter(UserId | None)


class BrowserTokens:
    """Makes and checks browser tokens with one secret key."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def issue(self, response_id: str, user_id: str | None, lifetime_s: int) -> tuple[str, datetime]:
        """Return a token and when it expires."""
        now = self._clock.now_ms() // 1000
        claims = {"aud": AUDIENCE, "rid": response_id, "iat": now, "exp": now + lifetime_s}
        if user_id is not None:
            claims["sub"] = user_id
        token = jwt.encode(claims, self._key, algorithm=ALGORITHM)
        return f"{TOKEN_PREFIX}{token}", from_ms(now * 1000) + timedelta(seconds=lifetime_s)

    def redeem(self, token: str) -> BrowserGrant:
        """Return what a token allows.

        Raises:
            Denied: if it is not valid (401).

        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token.removeprefix(TOKEN_PREFIX),
                self._key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                # The times are checked below, by this service's clock.
                options={"require": ["aud", "rid", "iat", "exp"], "verify_exp": False, "verify_iat": False},
            )
            grant = BrowserGrant(
                _RESPONSE_ID.validate_python(claims["rid"], strict=True),
                _USER_ID.validate_python(claims.get("sub"), strict=True),
            )
        except (jwt.InvalidTokenError, ValidationError):
            raise _invalid("it is not signed with the token key of this service, or is damaged") from None
        issued, expires = claims["iat"], claims["exp"]
        if type(issued) is not int or type(expires) is not int:
            raise _invalid("its times are not whole seconds")
        now = self._clock.now_ms() / 1000
        if now >= expires:
            raise _invalid("it has expired")
        if issued > now + CLOCK_LEAD_S or expires - issued > MAX_LIFETIME_S:
            raise _invalid(f"it is not valid yet, or longer than {MAX_LIFETIME_S} seconds")
        return grant


def _invalid(reason: str) -> Denied:
    return Denied(
        401,
        "invalid_token",
        "Invalid browser token",
        f"the browser token is refused, because {reason}: let your server make a new one (POST /v1/feedback-tokens)",
    )
