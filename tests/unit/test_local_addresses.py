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
    Ownership,
    erasure_token,
    owner_of,
    pseudonym_key,
    read_record,
    write_record,
)
from deploy.local.supervisord import SOCKET_BYTES, socket_path, value

ROOT = Path(__file__).resolve().parents[2]


def test_a_free_port_is_taken_as_wanted_and_a_taken_one_replaced() -> None:
    free = choose_ports({"any": 0})["any"]
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        chosen = choose_ports({"free": free, "taken": taken})
    assert chosen["free"] == free
    assert chosen["taken"] in ports.FALLBACK_PORTS


def test_a_port_on_all_interfaces_counts_as_taken() -> None:
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
        assert choose_ports({"x": taken})["x"] != taken


def test_no_port_is_given_twice() -> None:
    free = choose_ports({"any": 0})["any"]
    chosen = choose_ports({"a": free, "b": free, "c": 0})
    assert len(set(chosen.values())) == 3


CHOOSES = (
    "import sys; from deploy.local.ports import choose_ports\n"
    "print(choose_ports({'a': 0})['a'], flush=True); sys.stdin.read()"
)


def test_a_port_that_another_process_has_chosen_is_its_own_until_it_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHOOSES], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        chosen = int(other.stdout.readline())
        with socket.socket() as nobody_listens:
            nobody_listens.settimeout(1)
            assert nobody_listens.connect_ex((HOST, chosen)) != 0
        assert choose_ports({"x": chosen})["x"] != chosen
        other.kill()
        other.wait()
        assert choose_ports({"x": chosen})["x"] == chosen
        assert choose_ports({"x": chosen})["x"] == chosen, (
            "a process that starts its stack anew finds its ports"
        )


def test_no_free_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_socket_of_a_deep_folder_lies_in_a_private_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    deep = tmp_path / ("d" * SOCKET_BYTES)
    path = socket_path(deep)
    assert path.parent.parent == tmp_path
    assert path.parent.stat().st_mode & 0o077 == 0
    assert socket_path(deep) == path
    assert socket_path(deep / "other") != path


def test_a_socket_folder_that_others_can_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    deep = tmp_path / ("d" * SOCKET_BYTES)
    socket_path(deep).parent.chmod(0o755)
    with pytest.raises(StackError, match="open to others"):
        socket_path(deep)


def test_a_socket_stays_in_a_short_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_path(Path("/s/run")) == Path("/s/run/supervisor.sock")


def test_a_percent_sign_is_escaped_for_supervisor() -> None:
    assert value("/a 100%/b") == "/a 100%%/b"


def test_one_stack_per_folder(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    assert owner_of(tmp_path) is None
    first.take()
    assert owner_of(tmp_path) == os.getpid()
    with pytest.raises(StackError, match=f"process {os.getpid()}"):
        second.take()
    first.release()
    assert owner_of(tmp_path) is None
    second.take()
    second.release()


def test_the_record_of_a_stack_that_was_killed_is_not_believed(tmp_path: Path) -> None:
    owner = Ownership(tmp_path)
    owner.take()
    write_record(tmp_path, {"state": "ready"})
    assert read_record(tmp_path) == {"state": "ready"}
    owner.release()
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("secret", "name"), [(pseudonym_key, "pseudonym.key"), (erasure_token, "erasure.token")]
)
def test_a_secret_is_made_once_and_is_private(
    secret: Callable[[Path], str], name: str, tmp_path: Path
) -> None:
    made = secret(tmp_path / "root")
    assert secret(tmp_path / "root") == made
    assert secret(tmp_path / "other") != made
    assert (tmp_path / "root" / name).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "root").iterdir()] == [name]
