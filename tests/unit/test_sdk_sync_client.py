"""The generated synchronous client is up to date, and has the methods of the asynchronous one."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

from loopwright import AsyncLoopwright, Loopwright

GENERATOR = Path(__file__).parents[2] / "sdk" / "generate_sync_client.py"


def test_sync_client_is_generated_from_the_async_client() -> None:
    generator = runpy.run_path(str(GENERATOR))
    generated = generator["generate"](generator["SOURCE"].read_text())
    assert generator["TARGET"].read_text() == generated, "run: python sdk/generate_sync_client.py"


def test_both_clients_have_the_same_methods() -> None:
    def signatures(client: type) -> dict[str, inspect.Signature]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: inspect.signature(method) for name, method in methods if not name.startswith("_")}

    assert signatures(Loopwright) == signatures(AsyncLoopwright)


def test_sync_client_has_no_coroutines() -> None:
    methods = inspect.getmembers(Loopwright, inspect.isfunction)
    assert [name for name, method in methods if inspect.iscoroutinefunction(method)] == []
