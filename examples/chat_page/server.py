"""The page's server: streams answers, relays the widget's feedback, and looks receipts up.

The browser knows neither API keys nor user ids: the server adds both. It can do so because it has a session with each
visitor. Pages without such a server send their feedback to the feedback service themselves.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Cookie, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from openai import AsyncOpenAI, OpenAIError
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from loopwright import AsyncLoopwright, LoopwrightError, Problem
from loopwright.feedback_kinds import FeedbackKind

HERE: Final = Path(__file__).resolve().parent
WIDGET: Final = HERE.parents[1] / "services" / "feedback" / "widget.min.js"
FILES: Final = {
    "/": (HERE / "page.html", "text/html"),
    "/page.css": (HERE / "page.css", "text/css"),
    "/page.js": (HERE / "page.js", "text/javascript"),
    "/icon.svg": (HERE / "icon.svg", "image/svg+xml"),
    "/v1/widget.js": (WIDGET, "text/javascript"),
}
POLICY: Final = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"
Visitor = Annotated[str, Cookie(alias="visitor", min_length=1, max_length=64)]


class Turn(BaseModel):
    """One message of the conversation."""

    role: str = Field(pattern="^(user|assistant)$")
    content: str = Field(max_length=20_000)


class Chat(BaseModel):
    """Body of `POST /api/chat`."""

    messages: list[Turn] = Field(min_length=1, max_length=100)


class WidgetFeedback(BaseModel):
    """What the widget sends. The user is not in it."""

    response_id: str
    event_id: str
    kind: FeedbackKind
    value: str


def build_app(chat: AsyncOpenAI, loop: AsyncLoopwright, model: str = "assistant") -> FastAPI:
    """Return the app.

    It closes both clients when it stops.

    Args:
        chat: answers.
        loop: takes feedback and returns receipts.
        model: the line that answers.

    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with chat, loop:
            yield

    app = FastAPI(title="Loopwright chat page", lifespan=lifespan, openapi_url=None)
    # The page is for this machine only: another name that resolves to it would be a foreign page (DNS rebinding).
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    for path in FILES:
        app.add_api_route(path, _serve_file(path), methods=["GET"])

    @app.post("/api/chat")
    async def answer(body: Chat, visitor: Visitor) -> StreamingResponse:
        """Stream the answer as JSON lines: `text` for each part, then `response_id`, or `error`."""
        return StreamingResponse(_answer(chat, model, visitor, body), media_type="application/x-ndjson")

    @app.post("/v1/feedback", status_code=HTTPStatus.ACCEPTED)
    async def relay(body: WidgetFeedback, visitor: Visitor) -> dict[str, Any]:
        """Send the widget's feedback on, as the visitor of this page."""
        accepted = await loop.send(body.response_id, visitor, body.kind, body.value, body.event_id)
        return accepted.model_dump(mode="json")

    @app.get("/api/receipt")
    async def receipt(response_id: str, event_id: str) -> dict[str, Any]:
        """Return what became of a feedback event."""
        return (await loop.receipt(response_id, event_id)).model_dump(mode="json")

    @app.exception_handler(LoopwrightError)
    async def failed(_: Request, error: LoopwrightError) -> JSONResponse:
        status = error.status if isinstance(error, Problem) else HTTPStatus.BAD_GATEWAY
        document = {"title": "The feedback service did not do it", "status": status, "detail": str(error)}
        return JSONResponse(document, status, media_type="application/problem+json")

    return app


def _serve_file(path: str) -> Callable[[Request], Response]:
    file, media_type = FILES[path]

    def serve(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        response = FileResponse(file, media_type=media_type, headers=headers)
        if path == "/" and "visitor" not in request.cookies:
            visitor = f"visitor-{secrets.token_hex(8)}"
            response.set_cookie("visitor", visitor, max_age=31_536_000, httponly=True, samesite="strict")
        return response

    return serve


async def _answer(chat: AsyncOpenAI, model: str, visitor: str, body: Chat) -> AsyncIterator[str]:
    messages: Any = [turn.model_dump() for turn in body.messages]
    response_id = ""
    try:
        stream = await chat.chat.completions.create(model=model, messages=messages, user=visitor, stream=True)
        async for chunk in stream:
            response_id = chunk.id
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                yield _line(text=text)
        yield _line(response_id=response_id)
    except OpenAIError as error:
        yield _line(error=f"The model did not answer: {error}")


def _line(**fields: str) -> str:
    return json.dumps(fields) + "\n"
