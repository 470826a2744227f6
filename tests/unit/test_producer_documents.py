"""`docs/producers.md` names commands, options, variables, headers and routes that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from loopwright import base_urls
from loopwright.cli import app as cli
from services.inference.core import openwebui_headers

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "producers.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line.split("  #")[0] for line in SHELL.splitlines() if line.startswith("loopwright ")]
COMMANDS += re.findall(r"`(loopwright [a-z][^`]*)`", TEXT)
OPENWEBUI = {
    "OPENAI_API_BASE_URL",
    "OPENAI_API_KEY",
    "ENABLE_FORWARD_USER_INFO_HEADERS",
    "FORWARD_USER_INFO_HEADER_JWT_SECRET",
}
"""Variables in `backend/open_webui/env.py` and `config.py` of open-webui/open-webui."""
LANGFUSE = {"LANGFUSE_BASE_URL", "LANGFUSE_HOST", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"}
"""Variables of Langfuse's SDKs, and of `packages/api/src/langfuse` in LibreChat."""


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and the words after it."""
    command: Any = typer.main.get_command(cli)  # of click, which some versions of typer contain
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_exist(line: str) -> None:
    command, rest = command_of(shlex.split(line)[1:])
    assert not (hasattr(command, "commands") and rest), f"no such command: {line}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in rest if word.startswith("--") and word not in known] == []


def test_variables_are_settings_of_the_application_that_reads_them() -> None:
    names = set(re.findall(r"^(?:export )?([A-Z][A-Z_]+)=", SHELL, re.MULTILINE))
    names |= set(re.findall(r" ([A-Z][A-Z_]+)=", SHELL))
    cli_variables = {
        str(parameter.envvar)
        for command in (command_of(["connect", "openwebui"])[0],)
        for parameter in command.params
        if parameter.envvar
    }
    assert names - OPENWEBUI - LANGFUSE - cli_variables - {base_urls.API_KEY_VARIABLE} == set()
    assert names & OPENWEBUI and names & LANGFUSE and names & cli_variables


def test_addresses_are_those_of_the_local_stack() -> None:
    ports = {url.rsplit(":", 1)[1] for url in base_urls.DEFAULTS.values()}
    found = re.findall(r"(\w+)=http://localhost:(\d+)(\S*)", SHELL)
    assert {port for _, port, _ in found} <= ports
    assert ("OPENAI_API_BASE_URL", "8000", "/v1") in found
    assert ("LANGFUSE_BASE_URL", "8001", "") in found


def test_headers_are_those_that_inference_reads() -> None:
    [connection] = re.findall(r"`(\{\"X-OpenWebUI[^`]*\})`", TEXT)
    headers: dict[str, Any] = json.loads(connection)
    assert set(headers) == {
        openwebui_headers.MESSAGE_HEADER,
        openwebui_headers.USER_HEADER,
        openwebui_headers.TASK_HEADER,
    }
    assert set(re.findall(r"X-OpenWebUI-[\w-]+", TEXT)) == set(headers)
    assert f"`{openwebui_headers.RESPONSE_PREFIX}`" in TEXT


def test_routes_exist() -> None:
    documents = [json.loads(path.read_text()) for path in (ROOT / "docs/schemas/openapi").glob("*.json")]
    routes = {
        (method.upper(), path)
        for document in documents
        for path in document["paths"]
        for method in document["paths"][path]
    }
    named = set(re.findall(r"`(GET|POST|DELETE) (/v1/[\w:/-]+)`", TEXT))
    assert len(named) >= 2
    assert named - routes == set()
