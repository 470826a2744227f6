"""Feedback that a page sends with a browser token: it must be about the token's response, and of the token's user."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

from pydantic import BaseModel, Field, TypeAdapter

from services.feedback.core.schemas import FEEDBACK_BODY, Body, FeedbackBody, parse_body
from shared.errors import Rejected
from shared.events import Id
from shared.user_ids import UserId

MIN_LIFETIME_S: Final = 60
DEFAULT_LIFETIME_S: Final = 3_600


class Grant(Protocol):
    """What a browser token allows."""

    @property
    def response_id(self) -> str:
        """The response that the feedback may be about."""

    @property
    def user_id(self) -> str | None:
        """The user whose feedback it may be; None: any."""


class WrongToken(Rejected):
    """The feedback is about another response, or of another user, than the browser token allows."""

    code = "wrong_token"


class TokenBody(Body):
    """Request body of `POST /v1/feedback-tokens`."""

    response_id: Id = Field(description="The response that feedback may be about.")
    user_id: UserId | None = Field(
        None, description="Your id of the user. With it, the token is for the feedback of this user only."
    )
    lifetime_s: int | None = Field(
        None,
        ge=MIN_LIFETIME_S,
        le=86_400,
        description=f"Seconds for which the token is valid; the default is {DEFAULT_LIFETIME_S}.",
    )


class _BrowserBody(FeedbackBody):
    # Empty is no user id, so it stands for "not given"; defaults are not validated.
    user_id: UserId = ""


class Token(BaseModel):
    """Response body of `POST /v1/feedback-tokens`."""

    token: str
    response_id: str
    expires_at: datetime


TOKEN_BODY = TypeAdapter(TokenBody)
_BROWSER_BODY: TypeAdapter[FeedbackBody] = TypeAdapter(_BrowserBody)


def parse_feedback(raw: bytes, grant: Grant | None) -> FeedbackBody:
    """Parse a body. With a token that names its user, `user_id` may be left out.

    Raises:
        Malformed: if it does not fit.
        WrongToken: if `grant` does not allow it.

    """
    if grant is None:
        return parse_body(FEEDBACK_BODY, raw)
    bound = grant.user_id
    body: FeedbackBody = parse_body(FEEDBACK_BODY if bound is None else _BROWSER_BODY, raw)
    if body.response_id != grant.response_id:
        raise WrongToken(
            "the browser token is for another response_id: let your server make one for this response"
        )
    if bound is None:
        return body
    if body.user_id not in ("", bound):
        raise WrongToken(
            "the browser token is for another user_id: leave user_id out, or let your server make one"
        )
    return body.model_copy(update={"user_id": bound})
