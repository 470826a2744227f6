"""Sign browser tokens on your own server, without a request to the feedback service.

A browser token is `lwt_` and a JSON Web Token (HS256). With it, a page may send feedback on one response until it
expires.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

AUDIENCE = "loopwright-feedback"
MIN_KEY_LENGTH = 32


def sign_browser_token(
    response_id: str, *, key: str, user_id: str | None = None, lifetime_s: int = 3600
) -> str:
    """Return a token for feedback on one response.

    Args:
        response_id: The `id` of the chat completion.
        key: The feedback service's `LOOPWRIGHT_FEEDBACK_TOKEN_KEY`. Keep it on your server.
        user_id: Your id of the user. With it, the token is for the feedback of this user only; the page can read it.
        lifetime_s: Seconds for which the token is valid, up to a day.

    Raises:
        ValueError: The key is too short, or the lifetime is not between a second and a day.

    """
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(
            f"the token key has fewer than {MIN_KEY_LENGTH} characters: use that of the feedback service"
        )
    if not 1 <= lifetime_s <= 86_400:
        raise ValueError("lifetime_s is not between 1 and 86400 seconds")
    now = int(time.time())
    claims: dict[str, Any] = {"aud": AUDIENCE, "rid": response_id, "iat": now, "exp": now + lifetime_s}
    if user_id is not None:
        claims["sub"] = user_id
    content = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
    signature = hmac.new(key.encode(), content.encode(), hashlib.sha256).digest()
    return f"lwt_{content}.{_base64(signature)}"


def _encode(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
