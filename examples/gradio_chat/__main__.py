"""Serve the Gradio chat: `python -m examples.gradio_chat`, next to a running stack (`make up`). Needs `gradio`."""

from __future__ import annotations

import argparse
import os

from openai import OpenAI

from examples.gradio_chat.page import build_page
from examples.gradio_chat.sessions import ChatSessions
from loopwright import Loopwright


def main() -> None:
    """Connect to inference and the feedback service as the SDK's environment variables say, and serve the page."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.gradio_chat", description="Serve a Gradio chat."
    )
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: 7860)")
    port: int = parser.parse_args().port
    with Loopwright() as loop:
        chat = OpenAI(base_url=loop.openai_base_url, api_key=os.environ.get("LOOPWRIGHT_API_KEY", "unused"))
        build_page(ChatSessions(chat, loop)).launch(server_name="127.0.0.1", server_port=port)


if __name__ == "__main__":
    main()
