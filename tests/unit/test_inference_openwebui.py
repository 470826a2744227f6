"""Headers of Open WebUI: its answers are recorded under ids that its feedback can name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.openwebui_headers import (
    CHAT_HEADER,
    MESSAGE_HEADER,
    TASK_HEADER,
    USER_HEADER,
    OpenWebuiIds,
    openwebui_ids,
)
from shared.pseudonym import Pseudonymiser
from tests.inference_app import BODY, CHAT, App, chunks_of, running

MESSAGE = "7c1a5a52-3d3b-4a0e-9d4f-0a3f6f3c2b11"
HEADERS = {
    "X-OpenWebUI-User-Name": "Ann",
    "X-OpenWebUI-User-Id": "u-17",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "chat-1",
    "X-OpenWebUI-Message-Id": MESSAGE,
}
"""As `include_user_info_headers` and the chat router of Open WebUI make them."""


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with running(App()) as app:
        yield app


async def chat(app: App, headers: dict[str, str], **fields: Any) -> Any:
    return await app.http.post(CHAT, json=BODY | fields, headers=headers)


async def test_streamed_answer_is_recorded_under_its_message_and_user(app: App) -> None:
    answer = await chat(app, HEADERS, stream=True)
    assert {chunk["id"] for chunk in chunks_of(answer)} == {f"openwebui-{MESSAGE}"}
    [record] = app.records()
    assert record.response_id == f"openwebui-{MESSAGE}"
    assert record.user_id == Pseudonymiser(b"k" * 32).of("u-17")
    assert record.metadata == {"openwebui_chat_id": "chat-1"}
    assert b"ann@example.org" not in (app.log.records("chat.responses")[0].value or b"")


async def test_tasks_of_a_message_have_ids_of_their_own(app: App) -> None:
    await chat(app, HEADERS)
    await chat(app, HEADERS | {TASK_HEADER: "title_generation"}, stream=True)
    assert all(record.response_id.startswith("chatcmpl-") for record in app.records())


async def test_task_header_tells_answers_that_are_not_streamed(app: App) -> None:
    await chat(app, HEADERS | {TASK_HEADER: ""})
    assert [record.response_id for record in app.records()] == [f"openwebui-{MESSAGE}"]


async def test_fields_of_the_body_come_before_headers(app: App) -> None:
    await chat(app, HEADERS, user="bob", metadata={"page": "7"})
    [record] = app.records()
    assert record.user_id == Pseudonymiser(b"k" * 32).of("bob")
    assert record.metadata == {"page": "7"}


@given(
    st.dictionaries(
        st.sampled_from([USER_HEADER, CHAT_HEADER, MESSAGE_HEADER, TASK_HEADER]),
        st.text(st.characters(max_codepoint=0xFF), max_size=300),
    ),
    st.booleans(),
)
def test_any_header_gives_ids_that_can_be_recorded_or_none(headers: dict[str, str], streamed: bool) -> None:
    ids = openwebui_ids(headers, streamed=streamed)
    assert ids.response_id is None or (len(ids.response_id) <= 128 and ids.response_id.isascii())
    assert ids.user_id is None or ids.user_id == headers[USER_HEADER]
    assert ids.chat_id is None or len(ids.chat_id) <= 128


def test_other_clients_have_no_such_ids() -> None:
    assert openwebui_ids({}, streamed=True) == OpenWebuiIds()
