"""Ports, folders and secrets of the local stack."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local import ports
from deploy.local.errors import StackError
from deploy.local.kafka import server_properties
from deploy.local.ports import HOST, choose_ports
from deploy.local.state_file import (
    StackLock,
    owner_pid,
    pseudonym_key,
    read_state,
    token_key,
    write_state,
)
from deploy.local.supervisord import SOCKET_BYTES, escape_percent, socket_path

ROOT = Path(__file__).resolve().parents[2]


def test_preferred_port_is_used_if_free_and_replaced_if_not() -> None:
    free = choose_ports({"any": 0})["any"]
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        chosen = choose_ports({"free": free, "taken": taken})
    assert chosen["free"] == free
    assert chosen["taken"] in ports.FALLBACK_PORTS


def test_port_on_all_interfaces_counts_as_used() -> None:
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
        assert choose_ports({"x": taken})["x"] != taken


def test_chosen_ports_are_distinct() -> None:
    free = choose_ports({"any": 0})["any"]
    chosen = choose_ports({"a": free, "b": free, "c": 0})
    assert len(set(chosen.values())) == 3


CHOOSES = (
    "import sys; from deploy.local.ports import choose_ports\n"
    "print(choose_ports({'a': 0})['a'], flush=True); sys.stdin.read()"
)


def test_chosen_port_is_reserved_until_its_process_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHOOSES], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        chosen = int(other.stdout.readline())
        with socket.socket() as probe:
            probe.settimeout(1)
            assert probe.connect_ex((HOST, chosen)) != 0
        assert choose_ports({"x": chosen})["x"] != chosen
        other.kill()
        other.wait()
        assert choose_ports({"x": chosen})["x"] == chosen
        assert choose_ports({"x": chosen})["x"] == chosen, "a process may choose its own ports again"


def test_lack_of_free_ports_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "claim", lambda _: None)
    with pytest.raises(StackError, match="no free port"):
        choose_ports({"kafka": 9092})


def test_kafka_listens_on_loopback_only() -> None:
    lines = dict(
        line.split("=", 1)
        for line in server_properties(port=1, controller_port=2).splitlines()
        if "=" in line
    )
    assert lines["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert lines["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1"


def test_socket_of_a_deep_folder_moves_to_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    deep = tmp_path / ("d" * SOCKET_BYTES)
    path = socket_path(deep)
    assert path.parent.parent == tmp_path
    assert path.parent.stat().st_mode & 0o077 == 0
    assert socket_path(deep) == path
    assert socket_path(deep / "other") != path


def test_socket_folder_open_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    deep = tmp_path / ("d" * SOCKET_BYTES)
    socket_path(deep).parent.chmod(0o755)
    with pytest.raises(StackError, match="open to others"):
        socket_path(deep)


def test_socket_stays_in_a_short_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_path(Path("/s/run")) == Path("/s/run/supervisor.sock")


def test_percent_sign_is_escaped_for_supervisor() -> None:
    assert escape_percent("/a 100%/b") == "/a 100%%/b"


def test_folder_has_at_most_one_stack(tmp_path: Path) -> None:
    first, second = StackLock(tmp_path), StackLock(tmp_path)
    assert owner_pid(tmp_path) is None
    first.acquire()
    assert owner_pid(tmp_path) == os.getpid()
    with pytest.raises(StackError, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    assert owner_pid(tmp_path) is None
    second.acquire()
    second.release()


def test_state_of_a_killed_stack_is_ignored(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    lock.acquire()
    write_state(tmp_path, {"state": "ready"})
    assert read_state(tmp_path) == {"state": "ready"}
    lock.release()
    assert read_state(tmp_path) is None


@pytest.mark.parametrize(("secret", "name"), [(pseudonym_key, "pseudonym.key"), (token_key, "token.key")])
def test_secret_is_created_once_and_is_private(
    secret: Callable[[Path], str], name: str, tmp_path: Path
) -> None:
    created = secret(tmp_path / "root")
    assert secret(tmp_path / "root") == created
    assert secret(tmp_path / "other") != created
    assert (tmp_path / "root" / name).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "root").iterdir()] == [name]
