"""A judge model behind an OpenAI-compatible endpoint on localhost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Choose = Callable[[str, str], str]
"""(answer A, answer B) -> reply"""


def prefers(word: str) -> Choose:
    """Return a judge that prefers answers with a word."""
    return lambda a, b: "TIE" if (word in a) == (word in b) else "A" if word in a else "B"


@contextmanager
def served(choose: Choose, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """Serve an OpenAI-compatible endpoint; yields its URL and the requests that it gets."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers["Authorization"], body))
            material = json.loads(body["messages"][1]["content"])
            reply = {"choices": [{"message": {"content": f" {choose(material['A'], material['B'])}. "}}]}
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
