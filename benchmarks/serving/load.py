"""Clients of an OpenAI-compatible server that stream chats and note when each token arrives."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=600)
BEFORE_SHORT = 8
"""Tokens of the long answers before short requests arrive."""
PLACES = (
    "a harbour",
    "the mountains",
    "a small town",
    "a railway station",
    "an old library",
    "the desert",
    "a farm",
)


class WrongAnswer(Exception):
    """A server refused a request or answered something else than was asked for."""


@dataclass(slots=True)
class Chat:
    """One streamed answer.

    Attributes:
        sent_at: When the request was sent, as `time.perf_counter()`.
        arrivals: When each piece of text arrived.
        model: Version that answered.
        text: The answer.

    """

    sent_at: float
    arrivals: list[float] = field(default_factory=list)
    model: str = ""
    text: str = ""

    @property
    def first_token_s(self) -> float:
        """Seconds until the first piece of text."""
        return self.arrivals[0] - self.sent_at

    @property
    def seconds(self) -> float:
        """Seconds until the last piece of text."""
        return self.arrivals[-1] - self.sent_at


def prompt(number: int) -> str:
    """Return a prompt that a model answers at length, unlike the others."""
    return f"Tell me a long story, number {number}, about somebody who arrives at {PLACES[number % len(PLACES)]}."


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    number: int,
    tokens: int,
    on_piece: Callable[[], None] = lambda: None,
) -> Chat:
    """Send a greedy request and return its answer, whose pieces are about one token each.

    Raises:
        WrongAnswer: if the server refuses it or the answer is empty.

    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    chat = Chat(time.perf_counter())
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise WrongAnswer(f"{response.status}: {(await response.text())[:500]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk: dict[str, Any] = json.loads(line[6:])
            if "error" in chunk:
                raise WrongAnswer(str(chunk["error"]))
            chat.model = chunk.get("model", "")
            for choice in chunk.get("choices", ()):
                text = choice.get("delta", {}).get("content")
                if text:
                    chat.arrivals.append(time.perf_counter())
                    chat.text += text
                    on_piece()
    if not chat.arrivals:
        raise WrongAnswer("the answer is empty")
    return chat


async def closed_loop(
    url: str,
    model: str,
    clients: int,
    tokens: int,
    warm_up_s: float,
    seconds: float,
    cpu_s: Callable[[], float] = time.process_time,
) -> Sample:
    """Let clients send one request after the other, and measure for `seconds` after a warm-up.

    `cpu_s` returns the processor time that the server has used.
    """
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    chats: list[Chat] = []
    numbers = iter(range(1_000_000))

    async def client() -> None:
        while time.perf_counter() < end:
            chats.append(await stream(session, url, model, next(numbers), tokens))

    async def processor_time() -> float:
        await asyncio.sleep(max(0.0, begin - time.perf_counter()))
        before = cpu_s()
        await asyncio.sleep(max(0.0, end - time.perf_counter()))
        return cpu_s() - before

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        used = asyncio.create_task(processor_time())
        await asyncio.gather(*(client() for _ in range(clients)))
        used_s = await used
    pieces = sum(begin <= arrival < end for chat in chats for arrival in chat.arrivals)
    firsts = [chat.first_token_s for chat in chats if chat.sent_at >= begin] or [chats[-1].first_token_s]
    return Sample(pieces / seconds, pieces / used_s, statistics.median(firsts), len(chats))


@dataclass(frozen=True, slots=True)
class Sample:
    """What clients got in the measured time.

    Attributes:
        tokens_per_s: Tokens per second of all together.
        tokens_per_cpu_s: Tokens per second of the server's processor time.
        first_token_s: Median seconds to a first token.
        chats: Number of answers.

    """

    tokens_per_s: float
    tokens_per_cpu_s: float
    first_token_s: float
    chats: int


async def short_behind_long(url: str, model: str, long: int, tokens: int, attempts: int) -> list[int]:
    """Return by how many decode steps one-token requests are late, which arrive while long answers are generated.

    A step is a token of the first long answer: the number is that of its tokens between request and first token,
    without the one that the step itself gives to everybody.
    """
    steps = 0
    late: list[int] = []
    under_way = asyncio.Event()

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == BEFORE_SHORT:
            under_way.set()

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        answers = [
            asyncio.create_task(
                stream(session, url, model, number, tokens, count if number == 0 else lambda: None)
            )
            for number in range(long)
        ]
        await under_way.wait()
        for number in range(attempts):
            before = steps
            await stream(session, url, model, 1000 + number, 1)
            if answers[0].done():
                break
            late.append(max(0, steps - before - 1))
            await asyncio.sleep(0.05)
        await asyncio.gather(*answers)
    return late


async def requests(
    url: str, model: str, clients: int, count: int, tokens: int
) -> tuple[list[Chat], list[str]]:
    """Send `count` requests from as many clients; return the answers and the errors."""
    chats: list[Chat] = []
    errors: list[str] = []
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            try:
                chats.append(await stream(session, url, model, number, tokens))
            except (WrongAnswer, aiohttp.ClientError, TimeoutError) as error:
                errors.append(f"{type(error).__name__}: {error}")

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    return chats, errors


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1))]
