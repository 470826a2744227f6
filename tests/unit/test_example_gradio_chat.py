"""The Gradio example: a like reaches the response that the visitor sees, without Gradio installed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from openai import OpenAI

from examples.gradio_chat import sessions as module
from examples.gradio_chat.sessions import ChatSessions, text_of
from loopwright import Loopwright, Retry


def completion(response_id: str, *texts: str) -> httpx.Response:
    chunks = [
        {"id": response_id, "object": "chat.completion.chunk", "created": 0, "model": "m",
         "choices": [{"index": 0, "delta": {"content": text}}]}
        for text in texts
    ]  # fmt: skip
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, chunks[0] | {"choices": []}]]
    body = "".join([*lines, "data: [DONE]\n\n"])
    return httpx.Response(200, text=body, headers={"content-type": "text/event-stream"})


class Services:
    """Inference, which numbers its answers, and the feedback service."""

    def __init__(self) -> None:
        self.chats: list[dict[str, Any]] = []
        self.feedback: list[dict[str, Any]] = []
        self.status = 202

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path.endswith("/chat/completions"):
            self.chats.append(body)
            return completion(f"chatcmpl-{len(self.chats)}", "Well", "ington.")
        self.feedback.append(body)
        return httpx.Response(self.status, json={"event_id": body["event_id"], "status": "accepted"})

    def sessions(self) -> ChatSessions:
        transport = httpx.MockTransport(self)
        chat = OpenAI(
            base_url="http://inference/v1",
            api_key="k",
            http_client=cast("Any", httpx.Client(transport=transport)),
        )
        loop = Loopwright(feedback_url="http://feedback", transport=transport, retry=Retry(attempts=1))
        return ChatSessions(chat, loop)

    def sent(self) -> list[tuple[str, str, str]]:
        return [(each["response_id"], each["kind"], each["value"]) for each in self.feedback]


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
]


def test_likes_reach_the_response_at_their_position() -> None:
    services = Services()
    sessions = services.sessions()
    assert list(sessions.answer("Hi", [], "ann"))[-1] == "Wellington."
    list(sessions.answer("Capital?", HISTORY, "ann"))
    list(sessions.answer("Hi", [], "bob"))
    sessions.like(1, True, "ann")
    sessions.like(3, False, "ann")
    sessions.like(1, False, "bob")
    assert services.sent() == [
        ("chatcmpl-1", "thumbs", "up"),
        ("chatcmpl-2", "thumbs", "down"),
        ("chatcmpl-3", "thumbs", "down"),
    ]
    assert services.chats[1]["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Capital?"},
    ]
    assert [event["user_id"] for event in services.feedback] == ["ann", "ann", "bob"]


def test_like_that_is_taken_back_is_retracted() -> None:
    services = Services()
    sessions = services.sessions()
    list(sessions.answer("Hi", [], "ann"))
    sessions.like(1, "", "ann")
    assert services.feedback == [], "nothing to take back"
    sessions.like(1, True, "ann")
    sessions.like(1, "", "ann")
    assert services.sent()[1] == ("chatcmpl-1", "retract", services.feedback[0]["event_id"])


def test_retried_answer_takes_the_place_of_the_first() -> None:
    services = Services()
    sessions = services.sessions()
    for _ in range(2):
        list(sessions.answer("Hi", [], "ann"))
    sessions.like(1, True, "ann")
    assert services.sent() == [("chatcmpl-2", "thumbs", "up")]


def test_unknown_position_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWERS", 1)
    services = Services()
    sessions = services.sessions()
    for user in ("ann", "bob"):
        list(sessions.answer("Hi", [], user))
    assert "too old" in sessions.like(1, True, "ann")
    assert services.feedback == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hi", "Hi"),
        ([{"type": "text", "text": "Hi"}, {"path": "a.png"}], "Hi"),
        ({"path": "a.png"}, ""),
        (None, ""),
    ],
)
def test_text_of_any_message_in_the_history(content: Any, text: str) -> None:
    assert text_of(content) == text


class FakeGradio(ModuleType):
    """As much of Gradio as the page uses. It keeps the handlers."""

    def __init__(self) -> None:
        super().__init__("gradio")
        self.LikeData = self.Request = SimpleNamespace
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.shown: list[str] = []
        self.Info = self.Warning = self.shown.append

    def Blocks(self, title: str) -> Any:
        return cast("Any", self)

    def __enter__(self) -> FakeGradio:
        return self

    def __exit__(self, *_: object) -> None: ...

    def Chatbot(self) -> Any:
        return SimpleNamespace(like=lambda handler, inputs, outputs: self.handlers.update(like=handler))

    def ChatInterface(self, answer: Callable[..., Any], chatbot: Any) -> None:
        self.handlers["answer"] = answer


def test_page_connects_gradios_events(monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = FakeGradio()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.delitem(sys.modules, "examples.gradio_chat.page", raising=False)
    page = importlib.import_module("examples.gradio_chat.page")
    services = Services()
    page.build_page(services.sessions())
    request = SimpleNamespace(session_hash="ann")
    assert list(gradio.handlers["answer"]("Hi", [], request))[-1] == "Wellington."
    gradio.handlers["like"](SimpleNamespace(index=1, liked=True), request)
    services.status = 503
    gradio.handlers["like"](SimpleNamespace(index=1, liked=False), request)
    assert gradio.shown[0] == "Thank you." and gradio.shown[1].startswith("Your feedback was not stored")
    monkeypatch.delitem(sys.modules, "examples.gradio_chat.page")
