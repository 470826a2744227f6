"""Tests of the identity of an engine's process: claimed by a lock, stable, and never shared."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.errors import Misconfigured
from shared.stream import instance
from shared.stream.instance import claim_instance

CLAIM = (
    "import sys, time; from pathlib import Path; from shared.stream.instance import claim_instance; "
    "print(claim_instance(Path(sys.argv[1]), sys.argv[2]).identity, flush=True); time.sleep(60)"
)


@contextmanager
def other_process(folder: Path, wanted: str = "auto") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Claim an instance in another process. Yields the process and its identity."""
    argv = [sys.executable, "-c", CLAIM, str(folder), wanted]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def test_processes_on_one_folder_get_different_instances(tmp_path: Path) -> None:
    with other_process(tmp_path) as (_, first), other_process(tmp_path) as (_, second):
        third = claim_instance(tmp_path)
    assert [first.rsplit("-", 1)[1], second.rsplit("-", 1)[1], third.name] == ["0", "1", "2"]
    assert len({first, second, third.identity}) == 3


def test_restarted_process_has_its_identity_again_even_after_a_kill(tmp_path: Path) -> None:
    with other_process(tmp_path) as (child, before):
        child.kill()
        child.wait()
        after = claim_instance(tmp_path)
    assert (after.name, after.identity) == ("0", before)


def test_taken_instance_is_refused_with_its_holder(tmp_path: Path) -> None:
    with other_process(tmp_path, "east") as (child, _):
        with pytest.raises(Misconfigured, match=f"'east' is taken by process {child.pid} in "):
            claim_instance(tmp_path, "east")
        assert claim_instance(tmp_path).name == "0"


def test_two_data_folders_on_one_host_never_share_an_identity(tmp_path: Path) -> None:
    assert claim_instance(tmp_path / "a").identity != claim_instance(tmp_path / "b").identity


def test_copied_data_folder_has_another_identity_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = claim_instance(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert claim_instance(tmp_path / "two").identity != one.identity


def test_released_instance_is_free_again(tmp_path: Path) -> None:
    first = claim_instance(tmp_path)
    assert claim_instance(tmp_path).name == "1"
    first.release()
    assert claim_instance(tmp_path).identity == first.identity


def test_damaged_lock_file_gets_a_new_identity(tmp_path: Path) -> None:
    first = claim_instance(tmp_path)
    first.release()
    (tmp_path / "0.lock").write_text("xy")
    assert claim_instance(tmp_path).identity != first.identity


def test_folder_that_cannot_be_locked_ends_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_DATA_DIR"):
        claim_instance(tmp_path / "data")


def test_no_free_instance_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "MAX_SLOTS", 1)
    held = claim_instance(tmp_path)
    with pytest.raises(Misconfigured, match="are taken"):
        claim_instance(tmp_path)
    held.release()
