"""Scripts of the containers: environment file, packages, model job, entrypoint, health check, compose test."""

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
from deploy.docker.healthcheck import not_ready_reason
from deploy.docker.packages import select_packages
from deploy.local.errors import StackError
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that `make env` needs, below a path with a space."""
    root = tmp_path / "a checkout"
    (root / "deploy/docker").mkdir(parents=True)
    shutil.copy(ROOT / "deploy/docker/env.sh", root / "deploy/docker")
    shutil.copy(ROOT / ".env.example", root)
    return root


def make_env(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the script of `make env`."""
    command = ["sh", str(checkout / "deploy/docker/env.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assignment(env: Path, name: str = "LOOPWRIGHT_PSEUDONYM_KEY") -> str:
    """Return the line of an environment file that sets a variable."""
    return next(line for line in env.read_text().splitlines() if line.startswith(f"{name}="))


def test_env_file_is_private_and_its_key_is_accepted(checkout: Path) -> None:
    assert make_env(checkout).returncode == 0
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600
    key = assignment(checkout / ".env").partition("=")[2]
    assert Settings(pseudonym_key=key).require_pseudonym_key() == key.encode()
    token_key = assignment(checkout / ".env", "LOOPWRIGHT_FEEDBACK_TOKEN_KEY").partition("=")[2]
    assert len(key) == len(token_key) == 64
    assert key != token_key


def test_each_env_file_has_new_secrets(checkout: Path) -> None:
    make_env(checkout)
    first = assignment(checkout / ".env")
    (checkout / ".env").unlink()
    make_env(checkout)
    assert assignment(checkout / ".env") != first


def test_existing_env_file_is_not_changed(checkout: Path) -> None:
    make_env(checkout)
    before = (checkout / ".env").read_text()
    again = make_env(checkout)
    assert (again.returncode, (checkout / ".env").read_text()) == (0, before)
    assert {path.name for path in checkout.iterdir()} == {".env", ".env.example", "deploy", "keys"}


def test_missing_secret_in_existing_env_file_is_named(checkout: Path) -> None:
    (checkout / ".env").write_text("LOOPWRIGHT_LINE=mine\n")
    process = make_env(checkout)
    assert process.returncode == 1 and "LOOPWRIGHT_PSEUDONYM_KEY" in process.stderr
    assert (checkout / ".env").read_text() == "LOOPWRIGHT_LINE=mine\n"


def test_named_packages_are_selected_with_their_hashes() -> None:
    lock = "# made by\na==1 \\\n    --hash=sha256:aa\n    # via b\nab==2 \\\n    --hash=sha256:bb\n"
    assert select_packages(lock, ["a"]) == "a==1 \\\n    --hash=sha256:aa\n    # via b\n"


def test_package_missing_from_the_lock_is_refused() -> None:
    with pytest.raises(SystemExit, match="gguf"):
        select_packages("a==1 \\\n    --hash=sha256:aa\n", ["gguf"])


def test_model_job_finds_its_converter_in_the_lock() -> None:
    selected = select_packages((ROOT / "requirements/local.txt").read_text(), ["gguf"])
    assert selected.startswith("gguf==") and "--hash=sha256:" in selected


@pytest.mark.parametrize("service", ["inference", "trainer"])
def test_services_with_artifacts_have_s3_support(service: str) -> None:
    assert select_packages((ROOT / f"requirements/{service}.txt").read_text(), ["s3fs"]).startswith("s3fs==")


def test_folder_outside_the_containers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="LOOPWRIGHT_MODELS_DIR"):
        model.prepare(str(tmp_path / "missing"), tmp_path)


def test_model_folder_is_used_unchanged(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert model.prepare(str(tmp_path), tmp_path / "state") == str(tmp_path.resolve())
    assert not (tmp_path / "state").exists()


def test_unreadable_model_folder_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError(13, "Permission denied", "/models/mine/model.safetensors")

    monkeypatch.setattr(model, "find_base", refuse)
    with pytest.raises(StackError, match=r"/models/mine/model\.safetensors .*chmod -R a\+rX"):
        model.prepare(str(tmp_path), tmp_path / "state")


def test_hub_model_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []
    folder = tmp_path / "snapshot"
    folder.mkdir()

    class FakeBase:
        path = folder

    monkeypatch.setattr(model, "find_base", lambda name: requested.append(name) or FakeBase)
    (tmp_path / "models").mkdir()
    assert [model.prepare("some/model", tmp_path) for _ in range(2)] == [str(folder)] * 2
    assert requested == ["some/model"]


def test_service_can_be_stopped_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    # In the image it is in the folder of the code as well.
    shutil.copy(ROOT / "deploy/docker/entrypoint.py", tmp_path)
    command = [sys.executable, str(tmp_path / "entrypoint.py"), "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "importing\n"
        child.terminate()
        assert child.wait(10) == 128 + signal.SIGTERM


@contextmanager
def fake_service(status: int, body: bytes) -> Iterator[int]:
    """Serve /readyz with this status and body; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Do not log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_ready_service_is_healthy() -> None:
    with fake_service(200, b"{}") as port:
        assert not_ready_reason(port) is None


def test_unready_service_reports_its_reason() -> None:
    with fake_service(503, b'{"checks": {"model": "starting"}}') as port:
        assert not_ready_reason(port) == '503 {"checks": {"model": "starting"}}'


def test_closed_port_is_not_ready() -> None:
    with fake_service(200, b"{}") as port:
        pass
    assert str(not_ready_reason(port)).startswith("no response")


def compose_test(tool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make compose-test` without a `docker` command."""
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
    # An engine that failed to start must be stopped.
    assert (tmp_path / "tool.calls").read_text() == "start\nstop\n"
