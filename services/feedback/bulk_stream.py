"""Answer a stream of rows with a stream of results: in order, with bounded memory, in both directions at once.

Many clients send a whole body before they read anything. Results therefore wait in memory, up to a bound, while the
body is still read. Beyond the bound the stream waits for the client to read. If it does not, the stream processes no
further row: it reads and discards the rest, so that the client comes to the results, whose last line says where to
continue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect

from services.feedback.core.ndjson import Row, RowSplitter

Json = dict[str, Any]
Finish = Callable[[], Awaitable[list[Json]]]
"""Waits until the rows are durable and returns one result per row."""
Begin = Callable[[Sequence[Row]], Awaitable[Finish]]
"""Validates rows and hands those that are valid to the log, in order."""
ROWS_AT_ONCE: Final = 256
GROUPS_IN_FLIGHT: Final = 4
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
"""Results that wait for a client that does not read yet: about 40,000 rows."""
STALL_S: Final = 10.0
IDLE_S: Final = 30.0


class BulkStream:
    """One bulk request.

    Args:
        body: chunks of the request body.
        begin: processes rows.
        max_row_bytes: longest row; a longer one gets a result with status 413.
        max_unread_bytes: bound of the results in memory.
        stall_s: seconds to wait at that bound for the client to read.
        idle_s: seconds to wait for the next chunk of the body.

    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        begin: Begin,
        *,
        max_row_bytes: int,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
        stall_s: float = STALL_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._body = body
        self._begin = begin
        self._rows = RowSplitter(max_row_bytes)
        self._max_unread = max_unread_bytes
        self._stall_s = stall_s
        self._idle_s = idle_s
        self._in_flight: deque[Finish] = deque()
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._written = asyncio.Event()
        self._was_read = asyncio.Event()

    async def results(self) -> AsyncIterator[bytes]:
        """Yield the results as lines of JSON."""
        reader = asyncio.create_task(self._process_body())
        reader.add_done_callback(lambda _: self._written.set())
        try:
            while True:
                await self._written.wait()
                self._written.clear()
                while self._unread:
                    lines = self._unread.popleft()
                    self._unread_bytes -= len(lines)
                    yield lines
                    self._was_read.set()
                if reader.done():
                    await reader  # raises what it failed with
                    return
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, ClientDisconnect):
                await reader

    async def _process_body(self) -> None:
        try:
            while (chunk := await self._next_chunk()) is not None:
                rows = self._rows.feed(chunk)
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    await self._process(rows[start : start + ROWS_AT_ONCE])
                    if not await self._client_reads():
                        unprocessed = rows[start + ROWS_AT_ONCE :]
                        await self._stop_unread(unprocessed[0].line if unprocessed else self._rows.next_line)
                        return
            await self._process(self._rows.finish())
            await self._finish_all()
        except TimeoutError:
            await self._finish_all()
            self._write([_stopped(self._rows.next_line, 408, "too_slow", _TOO_SLOW)])
        except ClientDisconnect:
            await self._finish_all()

    async def _next_chunk(self) -> bytes | None:
        async with asyncio.timeout(self._idle_s):
            return await anext(self._body, None)

    async def _process(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        self._in_flight.append(await self._begin(rows))
        if len(self._in_flight) >= GROUPS_IN_FLIGHT:
            self._write(await self._in_flight.popleft()())

    async def _finish_all(self) -> None:
        while self._in_flight:
            self._write(await self._in_flight.popleft()())

    def _write(self, results: Sequence[Json]) -> None:
        lines = b"".join(orjson.dumps(result) + b"\n" for result in results)
        self._unread.append(lines)
        self._unread_bytes += len(lines)
        self._written.set()

    async def _client_reads(self) -> bool:
        """Wait until there is room for results. Return False if the client does not read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stall_s):
                while self._unread_bytes > self._max_unread:
                    self._was_read.clear()
                    await self._was_read.wait()
        return self._unread_bytes <= self._max_unread

    async def _stop_unread(self, line: int) -> None:
        await self._finish_all()
        self._write([_stopped(line, 429, "results_unread", _UNREAD)])
        with suppress(TimeoutError):
            while await self._next_chunk() is not None:
                pass


_TOO_SLOW: Final = "the rest of the body did not arrive in time"
_UNREAD: Final = "the results are not read, and no more of them fit into memory"


def _stopped(line: int, status: int, code: str, reason: str) -> Json:
    return {
        "line": line,
        "status_code": status,
        "code": code,
        "title": "Stopped",
        "detail": f"{reason}, so neither this line nor any later one was processed: send them in another request, from "
        "this line on, and read results while sending or send fewer rows at once",
    }
