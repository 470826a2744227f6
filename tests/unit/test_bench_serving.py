"""The serving benchmark's own arithmetic, and its clients against a small server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.serving.__main__ import medians, ratios
from benchmarks.serving.load import WrongAnswer, closed_loop, percentile, requests, short_behind_long


@asynccontextmanager
async def server(step_s: float, joined_late: int = 0) -> AsyncIterator[str]:
    """A server that gives every client a token in each step; new requests join `joined_late` steps late."""
    step = asyncio.Condition()

    async def run_steps() -> None:
        while True:
            await asyncio.sleep(step_s)
            async with step:
                step.notify_all()

    async def chat(request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = await request.json()
        if body["model"] != "m":
            return web.Response(status=404, text="no such model")
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(body["max_tokens"] + joined_late):
            async with step:
                await step.wait()
            if number >= joined_late:
                chunk = {"model": "m", "choices": [{"delta": {"content": "a"}}]}
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    steps = asyncio.create_task(run_steps())
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        steps.cancel()
        await runner.cleanup()


def test_tokens_per_second_are_those_of_all_clients() -> None:
    async def measure() -> float:
        async with server(0.02) as url:
            return (await closed_loop(url, "m", 4, 10, 0.2, 1.0)).tokens_per_s

    assert 60 < asyncio.run(measure()) <= 4 / 0.02


@pytest.mark.parametrize("late", [0, 5])
def test_late_short_requests_are_counted_in_steps(late: int) -> None:
    async def measure() -> list[int]:
        async with server(0.03, late) as url:
            return await short_behind_long(url, "m", 3, 60, 4)

    counted = asyncio.run(measure())
    assert len(counted) == 4
    assert all(late <= steps <= late + 1 for steps in counted)


def test_refused_requests_are_errors_and_not_answers() -> None:
    async def measure(model: str) -> tuple[int, int]:
        async with server(0.005) as url:
            chats, errors = await requests(url, model, 3, 10, 2)
            return len(chats), len(errors)

    assert asyncio.run(measure("m")) == (10, 0)
    assert asyncio.run(measure("other")) == (0, 10)

    async def loop() -> None:
        async with server(0.005) as url:
            await closed_loop(url, "other", 1, 2, 0.0, 0.1)

    with pytest.raises(WrongAnswer, match="404"):
        asyncio.run(loop())


def test_percentile_is_a_value_that_the_share_does_not_exceed() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile(values, 0.0) == 1
    assert percentile([7.0], 0.99) == 7


def test_ratios_compare_medians_of_processor_time() -> None:
    def runs(*values: float) -> list[dict[str, float]]:
        return [{"tokens_per_cpu_s_8": value, "steps_late": value / 100} for value in values]

    figures = {
        "embedded": runs(100, 200, 300),
        "embedded-version": runs(190, 1, 400),
        "transformers": runs(50, 100, 800),
        "swaps": [{"swap_p99": 1.104}],
    }
    assert medians(figures["embedded"])["tokens_per_cpu_s_8"] == 200
    assert ratios(figures, [8]) == {
        "tokens_8_vs_transformers": 1.9,
        "version_8_vs_base": 0.95,
        "steps_late": 4.0,
        "swap_p99": 1.1,
    }
