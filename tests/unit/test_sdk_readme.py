"""The snippets of the SDK's README run as they are."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.asgi_server import listening
from tests.feedback_app import served_feedback

README = Path(__file__).parents[2] / "sdk" / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


async def complete(request: object) -> JSONResponse:
    message = {"role": "assistant", "content": "Nobody knows."}
    return JSONResponse(
        {
            "id": "chatcmpl-9", "object": "chat.completion", "created": 1, "model": "gpt-5-mini",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
    )  # fmt: skip


def test_snippets_run_and_everything_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    routes = [Route("/v1/chat/completions", complete, methods=["POST"])]
    monkeypatch.chdir(tmp_path)
    with served_feedback() as feedback, listening(Starlette(routes=routes)) as models:
        monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_URL", feedback)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{models}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        for snippet in SNIPPETS:
            exec(compile(snippet, str(README), "exec"), {})
        events = httpx.get(f"{feedback}/events").json()
        responses = httpx.get(f"{feedback}/responses").json()
    assert len(SNIPPETS) == 4
    assert [(event["response_id"], event["kind"]) for event in events] == [
        ("resp-1", "correction"), ("resp-1", "thumbs"), ("chatcmpl-9", "thumbs"),
    ]  # fmt: skip
    assert {(each["response_id"], each["version"]) for each in responses} == {
        ("chatcmpl-9", "gpt-5-mini"), ("resp-2", "my-model-3"),
    }  # fmt: skip
    assert "Counts(sent=1, refused=0, dropped=0)" in capsys.readouterr().out
