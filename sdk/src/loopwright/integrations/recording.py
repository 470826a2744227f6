"""What the callbacks for frameworks share. Whatever fails is logged and never raised into the app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

from loopwright import wire

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
    """Return the body of `POST /v1/responses`, with what frameworks call the model and the user."""
    return wire.response_body(
        response_id,
        messages,
        choices,
        version=wire.version_name(model),
        user_id=user_id if isinstance(user_id, str) and user_id else None,
        usage=usage,
        latency_ms=latency_ms,
        line=line,
    )
