"""Serve the chat page: `python -m examples.chat_page`, next to a running stack (`make up`)."""

from __future__ import annotations

import argparse
import os

import uvicorn
from openai import AsyncOpenAI

from examples.chat_page.server import build_app
from loopwright import AsyncLoopwright

HOST = "127.0.0.1"


def main() -> None:
    """Connect to inference and the feedback service as the SDK's environment variables say, and serve the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.chat_page", description="Serve a chat page.")
    parser.add_argument("--port", type=int, default=8090, help="port of the page (default: 8090)")
    port: int = parser.parse_args().port
    loop = AsyncLoopwright()
    chat = AsyncOpenAI(base_url=loop.openai_base_url, api_key=os.environ.get("LOOPWRIGHT_API_KEY", "unused"))
    print(f"The chat page is at http://{HOST}:{port}")
    uvicorn.run(build_app(chat, loop), host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    main()
