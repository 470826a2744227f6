"""What runs when containers are made: environment file, packages, model job, health check, compose test."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.docker import model
from deploy.docker.healthcheck import missing
from deploy.docker.packages import only
from deploy.local.errors import StackError
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make env` needs of the repository, below a path with a space."""
    root = tmp_path / "a checkout"
    (root / "deploy/docker").mkdir(parents=True)
    shutil.copy(ROOT / "deploy/docker/env.sh", root / "deploy/docker")
    shutil.copy(ROOT / ".env.example", root)
    return root


def make_env(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(checkout / "deploy/docker/env.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def key_in(env: Path, name: str = "LOOPWRIGHT_PSEUDONYM_KEY") -> str:
    return next(line for line in env.read_text().splitlines() if line.startswith(f"{name}="))


def test_the_environment_file_is_the_owners_alone_and_its_key_is_accepted(checkout: Path) -> None:
    assert make_env(checkout).returncode == 0
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600
    key = key_in(checkout / ".env").partition("=")[2]
    assert Settings(pseudonym_key=key).require_pseudonym_key() == key.encode()
    token = key_in(checkout / ".env", "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN").partition("=")[2]
    assert len(key) == len(token) == 64
    assert key != token


def test_every_environment_file_has_secrets_of_its_own(checkout: Path) -> None:
    make_env(checkout)
    first = key_in(checkout / ".env")
    (checkout / ".env").unlink()
    make_env(checkout)
    assert key_in(checkout / ".env") != first


def test_an_environment_file_that_is_there_is_never_changed(checkout: Path) -> None:
    make_env(checkout)
    before = (checkout / ".env").read_text()
    again = make_env(checkout)
    assert (again.returncode, (checkout / ".env").read_text()) == (0, before)
    assert {path.name for path in checkout.iterdir()} == {".env", ".env.example", "deploy"}


def test_a_secret_that_an_older_environment_file_lacks_is_named(checkout: Path) -> None:
    (checkout / ".env").write_text("LOOPWRIGHT_LINE=mine\n")
    said = make_env(checkout)
    assert said.returncode == 1 and "LOOPWRIGHT_PSEUDONYM_KEY" in said.stderr
    assert (checkout / ".env").read_text() == "LOOPWRIGHT_LINE=mine\n"


def test_only_the_named_packages_of_a_lock_are_kept_with_their_hashes() -> None:
    lock = "# made by\na==1 \\\n    --hash=sha256:aa\n    # via b\nab==2 \\\n    --hash=sha256:bb\n"
    assert only(lock, ["a"]) == "a==1 \\\n    --hash=sha256:aa\n    # via b\n"


def test_a_package_that_is_not_in_the_lock_is_refused() -> None:
    with pytest.raises(SystemExit, match="gguf"):
        only("a==1 \\\n    --hash=sha256:aa\n", ["gguf"])


def test_the_model_job_finds_its_converter_in_the_lock() -> None:
    kept = only((ROOT / "requirements/local.txt").read_text(), ["gguf"])
    assert kept.startswith("gguf==") and "--hash=sha256:" in kept


@pytest.mark.parametrize("service", ["inference", "trainer"])
def test_who_reads_and_writes_artifacts_can_do_so_on_s3(service: str) -> None:
    assert only((ROOT / f"requirements/{service}.txt").read_text(), ["s3fs"]).startswith("s3fs==")


def test_a_folder_that_the_containers_do_not_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="LOOPWRIGHT_MODELS_DIR"):
        model.prepare(str(tmp_path / "missing"), tmp_path)


def test_a_folder_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert model.prepare(str(tmp_path), tmp_path / "state") == str(tmp_path.resolve())
    assert not (tmp_path / "state").exists()


def test_unreadable_model_folder_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError(13, "Permission denied", "/models/mine/model.safetensors")

    monkeypatch.setattr(model, "find_base", refuse)
    with pytest.raises(StackError, match=r"/models/mine/model\.safetensors .*chmod -R a\+rX"):
        model.prepare(str(tmp_path), tmp_path / "state")


def test_a_hubs_model_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    folder = tmp_path / "snapshot"
    folder.mkdir()

    class Found:
        path = folder

    monkeypatch.setattr(model, "find_base", lambda name: asked.append(name) or Found)
    (tmp_path / "models").mkdir()
    assert [model.prepare("some/model", tmp_path) for _ in range(2)] == [str(folder)] * 2
    assert asked == ["some/model"]


def test_a_service_can_be_stopped_before_it_takes_signals_itself(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    # As in the image, where it lies beside the code.
    shutil.copy(ROOT / "deploy/docker/entrypoint.py", tmp_path)
    command = [sys.executable, str(tmp_path / "entrypoint.py"), "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "importing\n"
        child.terminate()
        assert child.wait(10) == 128 + signal.SIGTERM


@contextmanager
def a_service(status: int, body: bytes) -> Iterator[int]:
    """Something that answers /readyz so; yields its port."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_ready_service_misses_nothing() -> None:
    with a_service(200, b"{}") as port:
        assert missing(port) is None


def test_a_service_that_is_not_ready_says_what_it_misses() -> None:
    with a_service(503, b'{"checks": {"model": "starting"}}') as port:
        assert missing(port) == '503 {"checks": {"model": "starting"}}'


def test_a_port_where_nobody_listens_is_not_ready() -> None:
    with a_service(200, b"{}") as port:
        pass
    assert str(missing(port)).startswith("does not answer")


def compose_test(tool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make compose-test` where there is no `docker` command."""
    command = [sys.executable, "-m", "tests.compose", "--engine-tool", str(tool), *arguments]
    env = {"PATH": "/nowhere"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_compose_test_without_engine_fails_with_a_remedy(tmp_path: Path) -> None:
    done = compose_test(tmp_path / "missing")
    assert done.returncode == 1
    assert "compose-test FAILED: no Docker engine" in done.stderr
    assert "ENGINE_TOOL=" in done.stderr and str(tmp_path / "missing") in done.stderr


def test_compose_test_is_skipped_loudly_if_allowed(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "$1" >>"$0.calls"\nexit 1\n')
    tool.chmod(0o755)
    done = compose_test(tool, "--allow-missing-engine")
    assert done.returncode == 0
    assert "compose-test SKIPPED: no Docker engine" in done.stderr
    # An engine that did not come up in time must not stay.
    assert (tmp_path / "tool.calls").read_text() == "start\nstop\n"
