"""The local stack with stand-ins for the services: start, environment, restart, stop."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from redis import Redis
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from deploy.local.errors import StackError
from deploy.local.kafka import wait_for_kafka
from deploy.local.stack import LocalStack
from shared.kafka_connection import KafkaConnection

ROOT = Path(__file__).resolve().parents[2]
PREPARED = ROOT / ".loopwright"
SERVICE = Path(__file__).with_name("local_service.py")
DONE = [sys.executable, "-c", "print('topics exist')"]

Stack = Callable[..., LocalStack]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def stack(tmp_path: Path, notes: Path, kafka: str, redis_url: str) -> Stack:
    """Factory of stacks of stand-ins on this session's Kafka and Redis; services in `never` never become ready."""

    def make(*services: str, never: tuple[str, ...] = (), **overrides: Any) -> LocalStack:
        commands = {
            name: [sys.executable, str(SERVICE), name, str(notes), *(["never"] if name in never else [])]
            for name in services
        }
        settings: dict[str, Any] = {
            "root": tmp_path / "a root, 100% odd",
            "env": {"KAFKA_BOOTSTRAP_SERVERS": kafka, "REDIS_URL": redis_url},
            "base_model": tmp_path,
            "prepared": PREPARED,
        } | overrides
        return LocalStack(services=services, commands={"topics": DONE} | commands, **settings)

    return make


def environment_of(url: str) -> Mapping[str, str]:
    """Return the environment of the stand-in at this address."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=10)
    connection.request("GET", "/env")
    environment: Mapping[str, str] = json.loads(connection.getresponse().read())
    connection.close()
    return environment


def eventually() -> Retrying:
    """Retry a block until its assertions hold."""
    return Retrying(
        stop=stop_after_delay(10),
        wait=wait_fixed(0.05),
        retry=retry_if_exception_type((AssertionError, StackError, psutil.NoSuchProcess)),
        reraise=True,
    )


def test_services_stop_before_redis_and_kafka(
    stack: Stack, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with stack("inference", "feedback", env={}) as running:
        state = json.loads((running.root / "run" / "stack.json").read_text())
        pids = {name: running.pid_of(name) for name in ("kafka", "redis", "inference", "feedback")}
        assert wait_for_kafka(KafkaConnection(running.urls["kafka"]), seconds=10)
        with Redis.from_url(running.urls["redis"]) as redis:
            assert redis.ping()
        assert environment_of(running.urls["feedback"])["REDIS_URL"] == running.urls["redis"]
    assert state["state"] == "ready"
    assert state["pids"] == pids
    assert {name: state[name] for name in running.urls} == running.urls
    assert sorted(notes.read_text().splitlines()) == [
        "feedback kafka=True redis=True",
        "inference kafka=True redis=True",
    ]
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert not (running.root / "run" / "stack.json").exists()


def test_services_get_addresses_folders_and_a_stable_key(stack: Stack, tmp_path: Path) -> None:
    environments = []
    for _ in range(2):
        with stack("trainer", "feedback") as running:
            environments.append(
                (environment_of(running.urls["trainer"]), environment_of(running.urls["feedback"]))
            )
    (trainer, feedback), (_, feedback_again) = environments
    assert trainer["LOOPWRIGHT_BASE_MODEL"] == str(tmp_path.resolve())
    assert trainer["HF_HUB_OFFLINE"] == "1"
    assert trainer["LOOPWRIGHT_DATA_DIR"] == str(running.root / "data")
    assert trainer["LOOPWRIGHT_ARTIFACTS"] == str(running.root / "artifacts")
    assert trainer["OMP_NUM_THREADS"] == "1"
    assert "MALLOC_TRIM_THRESHOLD_" in trainer
    assert "MALLOC_TRIM_THRESHOLD_" not in feedback
    assert trainer["LOOPWRIGHT_FEEDBACK_PORT"] == feedback["LOOPWRIGHT_FEEDBACK_PORT"]
    key = feedback["LOOPWRIGHT_PSEUDONYM_KEY"]
    assert len(key) >= 32
    assert feedback_again["LOOPWRIGHT_PSEUDONYM_KEY"] == key
    for secret in (running.root / "pseudonym.key", running.root / "run" / "programs" / "trainer.json"):
        assert secret.stat().st_mode & 0o077 == 0


def test_callers_settings_reach_the_services(stack: Stack, kafka: str, redis_url: str) -> None:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": redis_url,
        "LOOPWRIGHT_TRAINER_EPOCHS": "a 'b' %c, \"d\"",
    }
    with stack("feedback", env=env) as running:
        assert environment_of(running.urls["feedback"])["LOOPWRIGHT_TRAINER_EPOCHS"] == "a 'b' %c, \"d\""


def test_killed_service_is_restarted(stack: Stack) -> None:
    with stack("feedback", "console") as running:
        killed = psutil.Process(running.pid_of("feedback"))
        # supervisord counts a program that dies within its first second as failing to start and delays its restart.
        with pytest.raises(psutil.TimeoutExpired):
            killed.wait(timeout=1.5)
        other = running.pid_of("console")
        killed.kill()
        for attempt in eventually():
            with attempt:
                assert running.pid_of("feedback") != killed.pid
        running.wait_ready(20)
        assert running.pid_of("console") == other


def test_restart_keeps_the_address_and_changes_the_process(stack: Stack, notes: Path) -> None:
    with stack("feedback") as running:
        before = running.pid_of("feedback")
        running.restart("feedback")
        running.wait_ready(20)
        assert running.pid_of("feedback") != before
        assert len(notes.read_text().splitlines()) == 1


def test_used_port_is_replaced_and_reported(stack: Stack, kafka: str, redis_url: str) -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "REDIS_URL": redis_url,
            "LOOPWRIGHT_FEEDBACK_PORT": str(taken),
        }
        with stack("feedback", env=env, progress=lines.append) as running:
            chosen = urlsplit(running.urls["feedback"]).port
            assert chosen != taken
            assert environment_of(running.urls["feedback"])["LOOPWRIGHT_FEEDBACK_PORT"] == str(chosen)
    assert f"feedback: port {taken} is in use, using {chosen}" in lines


def test_second_stack_in_the_same_folder_is_refused(stack: Stack) -> None:
    with stack("feedback") as running:
        with pytest.raises(StackError, match=rf"process {os.getpid()}\).*down"):
            stack("feedback").start()
        assert running.pid_of("feedback")
    with stack("feedback"):
        pass


def test_unready_service_is_named_with_reason_and_log(stack: Stack) -> None:
    running = stack("feedback", "console", never=("console",))
    running.start()
    try:
        running.wait_ready(20, services=["feedback"])
        with pytest.raises(StackError) as raised:
            running.wait_ready(1.0)
    finally:
        running.stop()
    message = str(raised.value)
    assert "not ready after 1 s: console\n" in message
    assert "503 the moon" in message
    assert "console started as" in message


def test_failing_topics_job_stops_the_stack(stack: Stack) -> None:
    failing = stack("feedback")
    failing._commands["topics"] = [sys.executable, "-c", "raise SystemExit('no such cluster')"]
    with pytest.raises(StackError, match="no such cluster"):
        failing.start()
    with stack("feedback"):
        pass


def test_unreachable_kafka_is_named(stack: Stack, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.stack.wait_for_kafka", lambda *_, **__: False)
    with pytest.raises(StackError, match=r"KAFKA_BOOTSTRAP_SERVERS=127\.0\.0\.1:1"):
        stack("feedback", env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "REDIS_URL": redis_url}).start()


def test_up_starts_a_background_stack_and_down_stops_it(tmp_path: Path, kafka: str, redis_url: str) -> None:
    env = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": redis_url,
        "LOOPWRIGHT_BASE_MODEL": "some/model",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.local", *arguments, "--root", str(tmp_path / "stack root")]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    started = run("up", "--services", "")
    assert started.returncode == 0, started.stdout + started.stderr
    assert f"kafka      {kafka}" in started.stdout
    owner = psutil.Process(json.loads(run("status", "--json").stdout)["owner"])
    assert owner.is_running()
    again = run("up", "--services", "")
    assert again.returncode == 1
    assert f"process {owner.pid}" in again.stderr
    assert run("down").returncode == 0
    assert psutil.wait_procs([owner], timeout=10)[1] == []
    stopped = run("status", "--json")
    assert json.loads(stopped.stdout) == {"state": "down"}
    assert stopped.returncode == 3
