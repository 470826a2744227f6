"""Publish from an event loop: acknowledgements of one delivery batch wake the loop once."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future

from shared.ports import Acked, Publisher
from shared.records import Output


class AsyncPublisher:
    """Wraps a `Publisher`, whose futures complete on a thread of its own, for use on one event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._completed: deque[tuple[asyncio.Future[Acked], Future[Acked]]] = deque()
        self._woken = False
        """Whether the loop was asked to hand over `_completed` and has not begun yet."""

    async def publish(self, record: Output) -> Acked:
        """Publish a record and wait for the acknowledgement. Raises what the publisher's future fails with."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Acked] = loop.create_future()

        def completed(future: Future[Acked]) -> None:
            self._completed.append((waiting, future))
            if not self._woken:
                self._woken = True
                loop.call_soon_threadsafe(self._hand_over)

        self._publisher.publish(record).add_done_callback(completed)
        return await waiting

    def _hand_over(self) -> None:
        # Cleared first: what completes from now on either is in the deque in time, or wakes the loop again.
        self._woken = False
        while self._completed:
            waiting, future = self._completed.popleft()
            if waiting.done():  # the request gave up
                continue
            error = future.exception()
            if error is None:
                waiting.set_result(future.result())
            else:
                waiting.set_exception(error)
