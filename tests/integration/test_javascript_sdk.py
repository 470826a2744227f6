"""The JavaScript SDK: its own tests, the real feedback service, and its README, in Node."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.feedback.core.receipts import Receipt
from shared.feedback_kinds import KIND_BY_NAME
from tests import feedback_server, inference_app
from tests.feedback_server import FeedbackApp

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "sdk-js"
BLOCK = re.compile(r"^```js\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = BLOCK.findall((SDK / "README.md").read_text())
INSTALL_S, RUN_S = 300, 100
MAX_WIDGET_BYTES = 6000


def run(*command: str, cwd: Path = SDK, timeout: int = RUN_S, **env: str) -> str:
    """Run a command; return what it printed. Fail the test if it fails."""
    program = shutil.which(command[0])
    if program is None:
        pytest.fail(
            f"{command[0]} is not on PATH: the JavaScript SDK needs Node 20 or newer with npm. Install both."
        )
    done = subprocess.run(
        [program, *command[1:]],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdk() -> Path:
    """The SDK, built, with its tools installed from the lock file."""
    lock = hashlib.sha256((SDK / "package-lock.json").read_bytes()).hexdigest()
    stamp = SDK / "node_modules" / ".loopwright-lock"
    if not stamp.exists() or stamp.read_text() != lock:
        run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", timeout=INSTALL_S)
        stamp.write_text(lock)
    shutil.rmtree(SDK / "dist", ignore_errors=True)
    run("npm", "run", "build")
    return SDK


@pytest.fixture(scope="module")
def feedback() -> Iterator[FeedbackApp]:
    with feedback_server.served() as app:
        yield app


@pytest.mark.timeout(INSTALL_S + 2 * RUN_S)
def test_types_are_correct_and_wrong_calls_are_refused(sdk: Path) -> None:
    run("npm", "run", "check", cwd=sdk)


def test_served_widget_is_built_from_its_sources(sdk: Path) -> None:
    built = (sdk / "dist" / "widget.min.js").read_bytes()
    assert (ROOT / "services" / "feedback" / "widget.min.js").read_bytes() == built, (
        "run `npm run widget` in sdk-js"
    )


def test_widget_is_smaller_than_6_kb() -> None:
    script = (ROOT / "services" / "feedback" / "widget.min.js").read_bytes()
    assert len(script) < MAX_WIDGET_BYTES
    assert len(gzip.compress(script)) < MAX_WIDGET_BYTES / 2


@pytest.mark.timeout(INSTALL_S + 2 * RUN_S)
def test_own_tests_pass(sdk: Path) -> None:
    run("npm", "test", cwd=sdk)


@pytest.mark.timeout(INSTALL_S + 2 * RUN_S)
def test_client_works_with_the_real_service(sdk: Path, feedback: FeedbackApp) -> None:
    run("npm", "run", "test:service", cwd=sdk, LOOPWRIGHT_FEEDBACK_URL=feedback.url)
    events = feedback.events()
    kinds = [(event.kind, event.value) for event in events if event.response_id == "js-kinds"]
    assert [kind for kind, _ in kinds] == [
        "thumbs",
        "thumbs",
        "rating",
        "correction",
        "comment",
        "preference",
        "preference",
        "retract",
    ]
    assert ("correction", "Né à Zürich 🇨🇭 in 1066.") in kinds
    many = Counter(event.value for event in events if event.response_id.startswith("js-many"))
    assert many == {"up": 500, "down": 500}
    assert len({(event.response_id, event.event_id) for event in events}) == len(events), (
        "none is in the log twice"
    )
    (response,) = (r for r in feedback.responses() if r.response_id == "js-recorded")
    assert [message.content for message in response.messages] == ["How warm is Oslo?", "", "7"]
    assert (response.choices[0].text, response.usage.completion_tokens) == ("Seven degrees.", 4)
    assert response.user_id is not None and response.user_id.startswith("u_")


@pytest.fixture(scope="module")
def consumer(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an app that has installed the packed SDK and `openai`, and nothing else."""
    app = tmp_path_factory.mktemp("app")
    run("npm", "pack", "--silent", "--pack-destination", str(app), cwd=sdk)
    (packed,) = app.glob("loopwright-*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(app / "unpacked", filter="data")
    modules = app / "node_modules"
    modules.mkdir()
    (app / "unpacked" / "package").rename(modules / "loopwright")
    (modules / "openai").symlink_to(sdk / "node_modules" / "openai")
    return app


@pytest.mark.timeout(INSTALL_S + 2 * RUN_S)
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet_runs(consumer: Path, feedback: FeedbackApp, number: int) -> None:
    with inference_app.served(inference_app.App()) as inference:
        script = consumer / f"snippet-{number}.mjs"
        script.write_text(SNIPPETS[number].replace("http://127.0.0.1:8000", inference))
        before = len(feedback.events())
        printed = run("node", str(script), cwd=consumer, LOOPWRIGHT_FEEDBACK_URL=feedback.url)
    assert len(feedback.events()) == before + 1
    if "receipt" in SNIPPETS[number]:
        assert len(printed.split()) > 3, "a receipt is a sentence"


def test_package_contains_the_code_its_types_and_no_dependency(consumer: Path) -> None:
    package = consumer / "node_modules" / "loopwright"
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"package.json", "README.md", "dist/index.js", "dist/index.d.ts"} <= names
    assert not any("test" in name or "node_modules" in name for name in names)
    assert '"dependencies"' not in (package / "package.json").read_text()


def test_kinds_and_receipts_are_those_of_the_services() -> None:
    source = (SDK / "src" / "feedback.ts").read_text()
    assert set(re.findall(r"readonly kind: '(\w+)'", source)) == {*KIND_BY_NAME, "retract"}
    receipt = source.split("export interface Receipt {")[1].split("\n}")[0]
    fields = re.findall(r"readonly (\w+):", receipt)
    assert {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field) for field in fields} == set(
        Receipt.model_fields
    )
