"""The README's snippets, run unchanged except for addresses and ids against a separate stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.services import SERVICES, port_setting
from deploy.local.stack import LocalStack

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(language, text) for language, text in BLOCK.findall((ROOT / "README.md").read_text())]
PYTHON = "\n".join(text for language, text in BLOCKS if language == "python")
CURL = next(text for _, text in BLOCKS if text.startswith("curl "))
COMMANDS = next(text for _, text in BLOCKS if text.startswith("loopwright ")).splitlines()


@pytest.fixture(scope="module")
def stack(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    env = {port_setting(service): "0" for service in SERVICES}
    env |= {"LOOPWRIGHT_DEMO": "true"}
    root = tmp_path_factory.mktemp("readme")
    with LocalStack(root, env=env, base_model=tiny_model, prepared=ROOT / ".loopwright") as running:
        yield running


@pytest.fixture(scope="module")
def answered(stack: LocalStack) -> str:
    """Output of the Python snippets, followed by the id of their response."""
    code = PYTHON.replace("http://127.0.0.1:8000", stack.urls["inference"]) + "\nprint(answer.id)\n"
    return run([sys.executable, "-c", code], stack)


def run(command: list[str], stack: LocalStack) -> str:
    """Run a command with the stack's addresses; return its output."""
    env = os.environ | {
        "LOOPWRIGHT_FEEDBACK_URL": stack.urls["feedback"],
        "LOOPWRIGHT_CONSOLE_URL": stack.urls["console"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.strip()


@pytest.mark.timeout(300)
def test_chat_correction_and_receipt_in_python(answered: str) -> None:
    receipt, response_id = answered.splitlines()
    assert len(receipt.split()) > 3, "a receipt is a sentence"
    assert response_id.startswith("chatcmpl-")


@pytest.mark.timeout(300)
def test_feedback_by_curl(stack: LocalStack, answered: str) -> None:
    command = CURL.replace("http://127.0.0.1:8001", stack.urls["feedback"])
    command = command.replace("chatcmpl-...", answered.splitlines()[1])
    assert '"event_id"' in run(["sh", "-c", command], stack)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_in_the_cli(stack: LocalStack, command: str) -> None:
    output = run([*command.split(), "--help"], stack)
    assert "Usage" in output
    if command in ("loopwright status", "loopwright versions"):
        assert "assistant@base" in run(command.split(), stack)
