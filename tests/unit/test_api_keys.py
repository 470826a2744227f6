"""API keys: the file, the commands that change it, and the services that follow it."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from loopwright.api_keys import SCOPES, ApiKeyFile, KeyFileError
from loopwright.cli import app
from shared.adapters.access import Access
from shared.adapters.clock import ManualClock
from shared.adapters.key_file import KEEP_S, READ_EVERY_S, KeyFile
from shared.api_keys import SCOPES as SERVICE_SCOPES
from shared.api_keys import ApiKey, KeyTable
from shared.errors import Malformed, Misconfigured
from shared.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keys.json"


def loopwright(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["keys", *arguments])


# --- the form, in the SDK and in the services -----------------------------------------------------------------------


def test_sdk_and_services_know_the_same_scopes() -> None:
    assert SCOPES == SERVICE_SCOPES


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(SCOPES), min_size=1), st.booleans())
def test_services_accept_what_the_sdk_writes(
    tmp_path_factory: pytest.TempPathFactory, scopes: set[str], expires: bool
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key, entry = ApiKeyFile(path).create("one", sorted(scopes), timedelta(days=1) if expires else None)
    table = KeyTable.parse(path.read_bytes())
    found = table.find(key, datetime.now(UTC))
    assert isinstance(found, ApiKey)
    assert (found.name, found.scopes, found.id) == ("one", scopes, entry.id)
    assert table.find(key, datetime.now(UTC) + timedelta(days=2)) == ("expired" if expires else found)
    ApiKeyFile(path).revoke("one")
    assert KeyTable.parse(path.read_bytes()).find(key, datetime.now(UTC)) == "revoked"


def test_key_is_long_and_random_and_only_its_digest_is_stored(path: Path) -> None:
    keys = [ApiKeyFile(path).create(f"k{i}", ["read"])[0] for i in range(20)]
    assert len({key.split("_", 2)[2] for key in keys}) == 20
    assert all(len(key.split("_", 2)[2]) == 43 for key in keys), "256 bits"
    text = path.read_text()
    assert not any(key.split("_", 2)[2] in text for key in keys)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_changed_key_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key, _ = ApiKeyFile(path).create("one", ["read"])
    table = KeyTable.parse(path.read_bytes())
    at = data.draw(st.integers(0, 58))
    other = data.draw(st.characters())
    if other != key[at]:
        assert table.find(key[:at] + other + key[at + 1 :], NOW) in ("unknown", "malformed")
    assert table.find(key[:at], NOW) == "malformed"
    assert table.find(key + other, NOW) == "malformed"


@given(st.text())
def test_no_text_is_a_key_by_chance(text: str) -> None:
    assert KeyTable({}).find(text, NOW) in ("unknown", "malformed")


DIGEST = {"sha256": "0" * 64}
ENTRY = {"id": "0123456789ab", "name": "a", "scopes": ["read"], "created_at": "2026-01-01T00:00:00Z"} | DIGEST


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"keys": []}', b'{"version": 2, "keys": []}',
        *(json.dumps({"version": 1, "keys": [ENTRY | change]}).encode() for change in (
            {"scopes": []}, {"scopes": ["all"]}, {"id": "x"}, {"sha256": "secret-value"}, {"revoked_at": "soon"},
            {"revoked": True}, {"name": "a\nb"}, {"expires_at": "2026-01-01T00:00:00"},
        )),
        json.dumps({"version": 1, "keys": [ENTRY, ENTRY]}).encode(),
    ],
)  # fmt: skip
def test_damaged_file_is_refused_without_its_values(document: bytes) -> None:
    with pytest.raises(Malformed) as error:
        KeyTable.parse(document)
    assert "secret-value" not in str(error.value)


# --- services follow the file ---------------------------------------------------------------------------------------


def test_services_follow_the_file_without_a_restart(path: Path) -> None:
    clock = ManualClock()
    first, _ = ApiKeyFile(path).create("first", ["read"])
    keys = KeyFile(path, clock)

    def accepts(key: str) -> bool:
        table = keys.keys()
        assert table is not None
        return isinstance(table.find(key, NOW), ApiKey)

    assert accepts(first)
    second, _ = ApiKeyFile(path).create("second", ["read"])
    clock.advance(1)
    assert accepts(second)
    ApiKeyFile(path).revoke("first")
    clock.advance(1)
    assert not accepts(first)
    assert accepts(second)


def test_change_that_keeps_size_and_time_is_read_too(path: Path) -> None:
    """Some file systems count time in seconds, and an editor may write in place."""
    clock = ManualClock()
    ApiKeyFile(path).create("abc", ["read"])
    keys = KeyFile(path, clock)
    keys.keys()
    status = path.stat()
    path.write_text(path.read_text().replace('"abc"', '"xyz"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    clock.advance(READ_EVERY_S)
    table = keys.keys()
    assert table is not None
    assert [key.name for key in table.keys.values()] == ["xyz"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "folder", "unreadable"])
def test_file_that_cannot_be_used_closes_the_service_soon(path: Path, damage: str) -> None:
    clock = ManualClock()
    ApiKeyFile(path).create("one", ["read"])
    good = path.read_bytes()
    keys = KeyFile(path, clock)
    assert keys.problem is None
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "cut":
        path.write_bytes(good[:-20])
    elif damage == "folder":
        path.mkdir()
    elif damage == "unreadable":
        path.symlink_to("/proc/self/mem")
    clock.advance(1)
    assert keys.problem is not None
    assert str(path) in keys.problem
    assert keys.keys() is not None, "an editor may be writing it"
    clock.advance(KEEP_S + 1)
    assert keys.keys() is None
    path.rmdir() if damage == "folder" else path.unlink(missing_ok=True)
    path.write_bytes(good)
    clock.advance(1)
    assert (keys.problem, keys.keys() is not None) == (None, True)


def test_service_that_starts_without_the_file_is_closed_until_it_exists(path: Path) -> None:
    clock = ManualClock()
    keys = KeyFile(path, clock)
    assert keys.keys() is None
    ApiKeyFile(path).create("one", ["read"])
    clock.advance(1)
    assert keys.keys() is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "loop.example.org"])
def test_service_without_keys_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_API_KEYS"):
        Access.from_settings(Settings(host=host))
    assert Access.from_settings(Settings(host=host, allow_without_keys=True)).keys is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_service_without_keys_may_listen_on_loopback(
    host: str, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    assert Access.from_settings(Settings(host=host)).keys is None
    assert "no_api_keys" in capsys.readouterr().out
    assert Access.from_settings(Settings(host=host, api_keys=path)).keys is not None


def test_empty_setting_means_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_API_KEYS", "")
    assert Settings().api_keys is None


# --- the commands -----------------------------------------------------------------------------------------------


def test_key_is_printed_once_and_only_the_key_on_stdout(path: Path) -> None:
    created = loopwright("create", "shop", "--scope", "ingest", "-s", "read", "--file", str(path))
    assert created.exit_code == 0
    key = created.stdout.strip()
    assert isinstance(KeyTable.parse(path.read_bytes()).find(key, NOW), ApiKey)
    listed = loopwright("list", "--file", str(path))
    assert "shop" in listed.stdout and "ingest, read" in listed.stdout and "active" in listed.stdout
    assert key not in listed.stdout and "sha256" not in listed.stdout


def test_commands_print_json(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_API_KEYS", str(path))
    created = json.loads(loopwright("create", "a", "--all-scopes", "--expires", "90d", "--json").stdout)
    assert created["key"].startswith("lw_") and created["scopes"] == list(SCOPES)
    revoked = json.loads(loopwright("revoke", "a", "--json").stdout)
    (listed,) = json.loads(loopwright("list", "--json").stdout)
    assert listed == revoked
    assert (listed["state"], "sha256" in listed, "key" in listed) == ("revoked", False, False)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["create", "a"], 2, "--scope"),
        (["create", "a", "--scope", "read", "--all-scopes"], 2, "--scope"),
        (["create", "a", "--scope", "write"], 1, "chat, ingest, read, operate, erase"),
        (["create", "a b", "--scope", "read"], 1, "invalid name"),
        (["create", "taken", "--scope", "read"], 1, "already has a key taken"),
        (["create", "a", "--scope", "read", "--expires", "soon"], 2, "90d"),
        (["revoke", "other"], 1, "its keys are taken"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(
    path: Path, arguments: list[str], status: int, message: str
) -> None:
    ApiKeyFile(path).create("taken", ["read"])
    before = path.read_bytes()
    result = loopwright(*arguments, "--file", str(path))
    assert result.exit_code == status
    assert message in result.stderr
    assert path.read_bytes() == before


def test_missing_and_damaged_files_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOPWRIGHT_API_KEYS", raising=False)
    assert "--file" in loopwright("list").stderr
    path.parent.mkdir()
    path.write_text("{")
    for arguments in (["list"], ["create", "a", "--scope", "read"], ["revoke", "a"]):
        result = loopwright(*arguments, "--file", str(path), "--json")
        assert result.exit_code == 1
        assert "damaged" in json.loads(result.stderr)["error"]["message"]
    assert path.read_text() == "{"


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    threads = [threading.Thread(target=ApiKeyFile(path).create, args=(f"k{i}", ["read"])) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in ApiKeyFile(path).entries()} == {f"k{i}" for i in range(12)}
    assert sorted(child.name for child in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_file_may_be_read_by_the_users_of_the_services(path: Path) -> None:
    ApiKeyFile(path).create("a", ["read"])
    assert path.stat().st_mode & 0o777 == 0o644


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot be written"):
        ApiKeyFile(tmp_path / "file" / "keys.json").create("a", ["read"])
