"""Errors of inference: OpenAI's error object on every route and status, and no server error for any input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.api.request_schemas import IGNORED_FIELDS, UNSUPPORTED_FIELDS, ChatRequest
from services.inference.api.routes import INSTEAD, MAX_BODY_BYTES
from services.inference.core.generation_options import OPTION_NAMES
from tests.inference_app import BODY, CHAT, JSON, App, running

SURROGATE = "\\ud800"


class Client:
    """The application with a loop of its own, for tests that are not coroutines."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context = running(App())
        self.app: App = self._runner.run(self._context.__aenter__())
        self.app.engine.options = frozenset({"logprobs", "tools", "response_format"})

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self.app.http.request(method, path, **options))

    def chat(self, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.send("POST", CHAT, content=body, headers=JSON | (headers or {}))

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return OpenAI's error object of an answer."""
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"error"}
    error: dict[str, Any] = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("POST", "/v1/chat/completion", 404, "unknown_url"),
        ("POST", "/chat/completions", 404, "unknown_url"),
        ("DELETE", "/v1/fine_tuning/jobs/x", 404, "unknown_url"),
        ("GET", "/v1/%ff%00/\u2028", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4o", 404, "model_not_found"),
        ("GET", f"/v1/models/{'x' * 5000}", 404, "model_not_found"),
        *(("POST", path, 404, "unknown_url") for path in INSTEAD),
        *(("GET", f"{path}/some_id", 404, "unknown_url") for path in INSTEAD),
    ],
)
def test_path_or_method_that_does_not_exist_has_openais_error(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.send(method, path)
    assert answer.status_code == status
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert len(error["message"]) < 1000
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_other_apis_of_openai_name_the_one_to_use(client: Client, path: str) -> None:
    answer = client.send("POST", path, json={"model": "assistant", "prompt": "hi"})
    assert CHAT in error_of(answer)["message"]


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""],
)
def test_body_of_another_type_is_415(client: Client, content_type: str) -> None:
    answer = client.chat(json.dumps(BODY).encode(), {"Content-Type": content_type})
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_with_parameters_is_accepted(client: Client, content_type: str) -> None:
    assert client.chat(json.dumps(BODY).encode(), {"Content-Type": content_type}).status_code == 200


def test_too_large_requests_have_openais_error(client: Client) -> None:
    body = client.chat(b" " * (MAX_BODY_BYTES + 1))
    assert (body.status_code, error_of(body)["code"]) == (413, "oversized")
    headers = client.chat(b"{}", {"x-large": "x" * 20_000})
    assert (headers.status_code, error_of(headers)["code"]) == (431, "headers_too_large")


def test_unready_service_has_openais_error(client: Client) -> None:
    client.app.readiness.set("model", ok=False, detail="loading")
    answer = client.chat(json.dumps(BODY).encode())
    client.app.readiness.set("model", ok=True)
    assert (answer.status_code, error_of(answer)["type"]) == (503, "service_unavailable_error")
    assert answer.headers["retry-after"]


def test_bug_has_openais_error_and_hides_its_text(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret of /srv/keys")

    monkeypatch.setattr(client.app.registry, "acquire", fail)
    with pytest.raises(RuntimeError):  # the server logs it
        client.chat(json.dumps(BODY).encode())
    quiet = httpx.AsyncClient(
        transport=httpx.ASGITransport(client.app.app, raise_app_exceptions=False), base_url="http://inference"
    )
    answer = client._runner.run(quiet.post(CHAT, json=BODY))
    assert answer.status_code == 500
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in error["message"]


# --- garbage ------------------------------------------------------------------------------------------------------


def check(client: Client, body: bytes) -> None:
    """Check that a body is answered, or refused with OpenAI's error object."""
    answer = client.chat(body)
    assert answer.status_code in (200, 400, 404, 413, 503), answer.text
    if answer.status_code != 200:
        error_of(answer)
    elif not answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.json()["object"] == "chat.completion"


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_answered_without_a_server_error(client: Client, body: bytes) -> None:
    check(client, body)


NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 0, 1, 2])
LEAVES = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(["", "user", "assistant"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
NAMES = st.sampled_from(
    sorted({*ChatRequest.model_fields, *OPTION_NAMES, *IGNORED_FIELDS, *UNSUPPORTED_FIELDS})
) | st.text(max_size=8)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | VALUES},
    optional={
        "content": st.text()
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
        | VALUES,
        "name": VALUES,
        "tool_call_id": VALUES,
        "tool_calls": VALUES,
        "refusal": VALUES,
    },
)


def encoded(value: Any) -> bytes:
    """Return JSON in which lone surrogates, NaN and infinities stay what they are."""
    return json.dumps(value, ensure_ascii=True).encode()


@settings(max_examples=150, deadline=None)
@given(
    fields=st.dictionaries(NAMES, VALUES, max_size=4),
    messages=st.lists(MESSAGES, max_size=3) | VALUES,
    stream=st.booleans(),
)
def test_any_json_is_answered_without_a_server_error(
    client: Client, fields: dict[str, Any], messages: Any, stream: bool
) -> None:
    check(client, encoded(BODY | {"messages": messages} | fields))
    check(client, encoded(BODY | {"stream": stream} | fields))


@pytest.mark.parametrize("depth", [10, 150, 250, 100_000])
@pytest.mark.parametrize(
    "field", ["messages", "metadata", "tools", "response_format", "structured_outputs", "zz"]
)
def test_nesting_of_any_depth_is_answered(client: Client, field: str, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = opening * depth + "1" + closing * depth
        body = json.dumps(BODY)[:-1] + f', "{field}": {nested}}}'
        check(client, body.encode())
    schema = '{"a":' * depth + "1" + "}" * depth
    tool = '{"type":"function","function":{"name":"f","parameters":' + schema + "}}"
    check(client, (json.dumps(BODY)[:-1] + f', "tools": [{tool}]}}').encode())


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400 + ".5", "0x10", "01"],
)
@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "max_tokens", "n", "seed", "logprobs", "stop", "zz"]
)
def test_odd_numbers_are_answered(client: Client, field: str, value: str) -> None:
    check(client, (json.dumps(BODY)[:-1] + f', "{field}": {value}}}').encode())


@pytest.mark.parametrize(
    "field", ["content", "name", "tool_call_id", "model", "user", "metadata", "stop", "zz"]
)
def test_lone_surrogates_are_400(client: Client, field: str) -> None:
    text = json.dumps(BODY)
    if field in ("content", "name", "tool_call_id"):
        message = f'{{"role": "user", "content": "x", "{field}": "{SURROGATE}"}}'
        body = json.dumps(BODY | {"messages": ["@"]}).replace('"@"', message)
    elif field == "metadata":
        body = text[:-1] + f', "metadata": {{"{SURROGATE}": "x"}}}}'
    else:
        body = text[:-1] + f', "{field}": "{SURROGATE}"}}'
    answer = client.chat(body.encode())
    assert answer.status_code == 400
    error_of(answer)
