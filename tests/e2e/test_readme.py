"""The README's snippets, run as they stand there against a stack of their own; only addresses and ids are put in."""

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
    own = {port_setting(service): "0" for service in SERVICES}
    own |= {"LOOPWRIGHT_DEMO": "true"}
    root = tmp_path_factory.mktemp("readme")
    with LocalStack(root, env=own, base_model=tiny_model, prepared=ROOT / ".loopwright") as running:
        yield running


@pytest.fixture(scope="module")
def answered(stack: LocalStack) -> str:
    """What the Python snippets print, and then the id of their response."""
    code = PYTHON.replace("http://127.0.0.1:8000", stack.urls["inference"]) + "\nprint(answer.id)\n"
    return ran([sys.executable, "-c", code], stack)


def ran(command: list[str], stack: LocalStack) -> str:
    env = os.environ | {
        "LOOPWRIGHT_FEEDBACK_URL": stack.urls["feedback"],
        "LOOPWRIGHT_CONSOLE_URL": stack.urls["console"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout.strip()


@pytest.mark.timeout(300)
def test_chat_correction_and_receipt_in_python(answered: str) -> None:
    receipt, response_id = answered.splitlines()
    assert len(receipt.split()) > 3, "a receipt says what became of it in words"
    assert response_id.startswith("chatcmpl-")


@pytest.mark.timeout(300)
def test_feedback_by_curl(stack: LocalStack, answered: str) -> None:
    command = CURL.replace("http://127.0.0.1:8001", stack.urls["feedback"])
    command = command.replace("chatcmpl-...", answered.splitlines()[1])
    assert '"event_id"' in ran(["sh", "-c", command], stack)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_those_of_the_cli(stack: LocalStack, command: str) -> None:
    said = ran([*command.split(), "--help"], stack)
    assert "Usage" in said
    if command in ("loopwright status", "loopwright versions"):
        assert "assistant@base" in ran(command.split(), stack)
