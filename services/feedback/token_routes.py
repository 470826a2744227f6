"""Route that makes browser tokens, for an app's server."""

from __future__ import annotations

from datetime import datetime

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from services.feedback.browser_tokens import BrowserTokens
from services.feedback.core.browser_feedback import DEFAULT_LIFETIME_S, TOKEN_BODY
from services.feedback.core.schemas import parse_body
from shared.adapters.access_rules import needs
from shared.adapters.http import problem

PATH = "/v1/feedback-tokens"


class Token(BaseModel):
    """Response body of `POST /v1/feedback-tokens`."""

    token: str
    response_id: str
    expires_at: datetime


def add_token_routes(app: FastAPI, tokens: BrowserTokens | None) -> None:
    """Add the route. Without `tokens` it answers 403."""
    schema = TOKEN_BODY.json_schema(ref_template="#/components/schemas/{model}")
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @app.post(PATH, status_code=201, response_model=Token, openapi_extra=body)
    @needs("ingest")
    async def post_token(request: Request) -> JSONResponse:
        """Make a token with which a browser may send feedback on one response, without an API key."""
        if tokens is None:
            return problem(
                403,
                "tokens_not_configured",
                "Browser tokens are not configured",
                "LOOPWRIGHT_FEEDBACK_TOKEN_KEY is not set: set it to 32 random characters, and restart feedback",
            )
        wanted = parse_body(TOKEN_BODY, await request.body())
        token, expires_at = tokens.issue(
            wanted.response_id, wanted.user_id, wanted.lifetime_s or DEFAULT_LIFETIME_S
        )
        made = Token(token=token, response_id=wanted.response_id, expires_at=expires_at)
        return JSONResponse(made.model_dump(mode="json"), 201)
