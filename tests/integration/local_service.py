"""Stand-in for a service: `local_service.py NAME NOTES [never]`.

It answers HTTP requests with its environment. With `never`, it never becomes ready. On SIGTERM it writes to the file
NOTES whether Kafka and Redis still accept connections.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

name, notes = sys.argv[1], Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        unready = sys.argv[3:] and self.path == "/readyz"
        body = b"the moon" if unready else json.dumps(dict(os.environ)).encode()
        self.send_response(503 if unready else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def accepts_connections(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def stop(*_: object) -> None:
    kafka = accepts_connections(os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    redis = accepts_connections(urlsplit(os.environ["REDIS_URL"]).netloc)
    with notes.open("a") as file:
        file.write(f"{name} kafka={kafka} redis={redis}\n")
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
print(f"{name} started as {os.getpid()}", flush=True)
HTTPServer(("127.0.0.1", int(os.environ[f"LOOPWRIGHT_{name.upper()}_PORT"])), Handler).serve_forever()
