"""Clients that send one request after the other and note how long each took: `python -m benchmarks.feedback.load`.

They speak HTTP/1.1 over bare sockets, so that the clients take as little of the machine as possible.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from typing import Annotated, cast

import typer
import uvloop

USERS = 10_000
"""Users among whom the events are spread, so that no user exceeds the limit."""


def request(address: str, key: str, event: int) -> bytes:
    """Return the bytes of `POST /v1/feedback` with a new event."""
    body = json.dumps(
        {
            "event_id": f"e-{secrets.token_hex(12)}",
            "response_id": f"chatcmpl-{secrets.token_hex(12)}",
            "user_id": f"user-{event % USERS}",
            "kind": "correction",
            "value": "The capital of New Zealand is Wellington, which has about 215,000 inhabitants.",
        }
    ).encode()
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{authorization}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection. After each response it sends the next request, until `until`."""

    def __init__(self, address: str, key: str, until: float, first: int) -> None:
        self.seconds: list[float] = []
        self.failed = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._address = address
        self._key = key
        self._until = until
        self._event = first
        self._received = b""
        self._sent_at = 0.0
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's does not inherit from it
        self._send()

    def data_received(self, data: bytes) -> None:
        """Note a complete response and send the next request."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.seconds.append(now - self._sent_at)
        self.failed += not head.startswith(b"HTTP/1.1 202")
        self._received = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        payload = request(self._address, self._key, self._event)
        self._event += 1
        self._sent_at = time.perf_counter()
        self._transport.write(payload)


async def run(host: str, port: int, clients: int, seconds: float, key: str) -> dict[str, float]:
    """Send requests for some seconds; return requests per second and the percentiles of their duration in ms."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = [Client(f"{host}:{port}", key, began + seconds, n * USERS // clients) for n in range(clients)]
    for client in made:
        await loop.create_connection(lambda client=client: client, host, port)  # type: ignore[misc]
    await asyncio.gather(*[client.done for client in made])
    took = time.perf_counter() - began
    durations = sorted(1000 * each for client in made for each in client.seconds)
    percentiles = statistics.quantiles(durations, n=100)
    return {
        "requests": len(durations),
        "failed": sum(client.failed for client in made),
        "per_s": round(len(durations) / took, 1),
        "p50_ms": round(percentiles[49], 2),
        "p99_ms": round(percentiles[98], 2),
    }


def main(
    port: Annotated[int, typer.Option()],
    clients: Annotated[int, typer.Option()] = 64,
    seconds: Annotated[float, typer.Option()] = 5.0,
    key: Annotated[str, typer.Option(envvar="LOOPWRIGHT_API_KEY")] = "",
    host: Annotated[str, typer.Option()] = "127.0.0.1",
) -> None:
    """Measure, and print one JSON line."""
    print(json.dumps(uvloop.run(run(host, port, clients, seconds, key))))


if __name__ == "__main__":
    typer.run(main)
