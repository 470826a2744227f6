"""Fixtures of all tests: a real Kafka, a real Redis, the models; and a mark per test folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from deploy.local.model import ensure_base_model, ensure_tiny_model
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import spawn, tail, terminate
from deploy.local.redis import prepare_redis, wait_for_redis
from tests.brokers import own_kafka

ROOT = Path(__file__).resolve().parent.parent
PREPARED = ROOT / ".loopwright"
# No deadline, because the time per example depends on the machine's load.
settings.register_profile("loopwright", deadline=None)
settings.load_profile("loopwright")
KINDS = ("unit", "contract", "integration", "fault", "e2e", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in KINDS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Kafka: KAFKA_BOOTSTRAP_SERVERS, else a broker for this session."""
    configured = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if configured:
        yield configured
        return
    with own_kafka(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis: REDIS_URL, else a server for this session."""
    configured = os.environ.get("REDIS_URL")
    if configured:
        yield configured
        return
    folder = tmp_path_factory.mktemp("redis")
    port = choose_ports({"redis": 0})["redis"]
    program = prepare_redis(data=folder / "data", port=port)
    log = folder / "redis.log"
    child = spawn(program, folder=folder, log=log)
    try:
        url = f"redis://{HOST}:{port}/0"
        assert wait_for_redis(url, seconds=30), f"Redis did not start:\n{tail(log)}"
        yield url
    finally:
        terminate(child, seconds=program.stop_seconds)


@pytest.fixture(scope="session")
def base_model() -> Path:
    """Folder of SmolLM2-135M-Instruct, prepared on first use (minutes), or LOOPWRIGHT_BASE_MODEL."""
    configured = os.environ.get("LOOPWRIGHT_BASE_MODEL")
    return Path(configured) if configured else ensure_base_model(PREPARED, print)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of a two-layer random Llama with SmolLM2's tokenizer: fast, but its answers are meaningless."""
    return ensure_tiny_model(PREPARED, print)


@pytest.fixture
def fresh() -> str:
    """A unique prefix for topics, groups and keys on a shared broker or server."""
    return f"t{secrets.token_hex(5)}"
