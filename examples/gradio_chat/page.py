"""The page: `gr.ChatInterface` with like buttons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from examples.gradio_chat.sessions import ChatSessions
from loopwright import LoopwrightError


def build_page(sessions: ChatSessions) -> gr.Blocks:
    """Return the page. A visitor is known by Gradio's session."""

    def answer(message: str, history: list[dict[str, Any]], request: gr.Request) -> Iterator[str]:
        yield from sessions.answer(message, history, str(request.session_hash))

    def on_like(data: gr.LikeData, request: gr.Request) -> None:
        try:
            gr.Info(sessions.like(int(data.index), data.liked, str(request.session_hash)))
        except LoopwrightError as error:
            gr.Warning(f"Your feedback was not stored: {error}")

    with gr.Blocks(title="Loopwright") as page:
        chatbot = gr.Chatbot()
        chatbot.like(on_like, None, None)
        gr.ChatInterface(answer, chatbot=chatbot)
    return page
