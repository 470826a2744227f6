"""What the callbacks for frameworks share. Whatever fails is logged and never raised into the app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec

MAX_VERSION: Final = 256
UNKNOWN_MODEL: Final = "unknown"
log = logging.getLogger("loopwright.integrations")
P = ParamSpec("P")


def never_raise(function: Callable[P, None]) -> Callable[P, None]:
    """Log what a callback raises, so that it cannot fail the app's request."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            log.warning("a response was not recorded", exc_info=True)

    return call


def response_body(
    response_id: str,
    messages: Sequence[Mapping[str, Any]],
    choices: Sequence[Mapping[str, Any]],
    *,
    model: object,
    user_id: object = None,
    usage: Mapping[str, int] | None = None,
    latency_ms: float | None = None,
    line: str | None = None,
) -> dict[str, Any]:
    """Return the body of `POST /v1/responses`, without the fields that are None."""
    body = {
        "response_id": response_id,
        "version": str(model)[:MAX_VERSION] if model else UNKNOWN_MODEL,
        "messages": list(messages),
        "choices": list(choices),
        "user_id": user_id if isinstance(user_id, str) and user_id else None,
        "usage": dict(usage) if usage else None,
        "latency_ms": latency_ms,
        "line": line,
    }
    return {name: value for name, value in body.items() if value is not None}
