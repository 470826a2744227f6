"""Every HTTP API answers as its OpenAPI document says, whatever it is sent: no bug becomes an answer of 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.http_apis import APPS, authorization, served

EXAMPLES = 10
JSON = {"Content-Type": "application/json"}
AUTHORIZATION = authorization()
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
ADVICE = (
    "send ", "check ", "try ", "choose ", "use ", "leave ", "give ", "expected", "should", "must", "shorten", "start ",
    "correct ", "add ", "add the", "needs", "available", "exactly one", "required", "wait", "accepts",
)  # fmt: skip
"""A detail of an error that says what to do has one of these words."""
quick = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@schemathesis.serializer("application/x-ndjson")
def as_rows(_: object, value: Any) -> bytes:
    """Send a generated body as the only row."""
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"


@dataclass(frozen=True)
class Api:
    name: str
    url: str
    document: dict[str, Any]

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                yield method.upper(), path, operation


@pytest.fixture(scope="module", params=sorted(APPS))
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    with APPS[request.param]() as app, served(app) as url:
        yield Api(request.param, url, json.loads(json.dumps(app.openapi())))


def test_api_answers_whatever_its_document_allows_as_it_says(api: Api) -> None:
    schema = schemathesis.openapi.from_dict(api.document)
    statuses: list[int] = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @quick
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            answer = case.call(base_url=api.url, headers=AUTHORIZATION)
            statuses.append(answer.status_code)
            require_sound(answer.status_code, answer.headers["content-type"][0], answer.content)
            case.validate_response(answer, checks=CHECKS)

        check()
    assert any(status < 300 for status in statuses), "no request was accepted"


def require_sound(status: int, content_type: str, content: bytes) -> None:
    """Require that an answer is no bug, and that an error says what to do."""
    assert status < 500 or status == 503, content
    if status < 400:
        return
    assert "json" in content_type, content
    body = json.loads(content)
    detail = body["error"]["message"] if "error" in body else body["detail"]
    assert any(word in detail.lower() for word in ADVICE), detail


# --- what no document allows ---------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [10**400, -0.0, 5.0, "\ud800", "\x00", "x" * 40_000, "..", "a/../b", "\u202e", "e\u0301"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
ENCODINGS = ("utf-8", "utf-16", "utf-32", "latin-1", "utf-8-sig")
NOT_JSON = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            b"NaN",
            b'{"value": NaN}',
            b'{"value": 1e999}',
            b"[" * 100_000,
            b'{"a":' * 20_000,
            b'"\\ud800"',
            b'{"\xff": 1}',
            b"\xef\xbb\xbf{}",
            b"\x1f\x8b\x08\x00",
            b'{"user_id": "a", "user_id": "b"}',
            b"9" * 20_000,
        ]
    ),
)


def examples_of(operation: dict[str, Any]) -> list[Any]:
    """Return the valid bodies that the document shows."""
    contents = operation.get("requestBody", {}).get("content", {}).values()
    return [example["value"] for content in contents for example in content.get("examples", {}).values()]


@st.composite
def spoiled_requests(draw: st.DrawFn, posts: list[tuple[str, dict[str, Any]]]) -> tuple[str, str, bytes]:
    """Draw a path, a media type, and a valid body with some fields replaced, or a body that is not JSON at all."""
    path, operation = draw(st.sampled_from(posts))
    media_type = next(iter(operation["requestBody"]["content"]))
    if draw(st.integers(0, 4)) == 0:
        return path, media_type, draw(NOT_JSON)
    body = draw(st.sampled_from(examples_of(operation)))
    if isinstance(body, dict):
        names = st.sampled_from([*body, "extra", "occurred_at", "created_at", "metadata", "choice", "tags"])
        body = body | draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    return path, media_type, text.encode(draw(st.sampled_from(ENCODINGS)), "replace")


def test_no_body_makes_an_api_fail(api: Api) -> None:
    posts = [(path, operation) for method, path, operation in api.operations() if method == "POST"]
    if not posts:
        return  # the trainer's API is read-only
    statuses: set[int] = set()
    with httpx.Client(base_url=api.url, timeout=10) as http:

        @settings(quick, max_examples=6 * EXAMPLES)
        @given(spoiled_requests(posts))
        def check(spoiled: tuple[str, str, bytes]) -> None:
            path, media_type, raw = spoiled
            answer = http.post(path, content=raw, headers=AUTHORIZATION | {"Content-Type": media_type})
            statuses.add(answer.status_code)
            require_sound(answer.status_code, answer.headers["content-type"], answer.content)

        check()
    assert any(400 <= status < 500 for status in statuses)


SEGMENTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [".", "..", "a.", "%2F", "%2e%2e", "%00", "%ff", "a%2Fb", "x" * 5_000, "a b", "é", "%", "?", "#"]
    ),
)


def test_no_path_or_query_makes_an_api_fail(api: Api) -> None:
    gets = [(path, operation) for method, path, operation in api.operations() if method == "GET"]

    statuses: set[int] = set()
    with httpx.Client(base_url=api.url, timeout=10, headers=AUTHORIZATION) as http:

        @settings(quick, max_examples=6 * EXAMPLES)
        @given(st.sampled_from(gets), st.lists(SEGMENTS, min_size=3, max_size=3), st.text(max_size=30))
        def check(route: tuple[str, dict[str, Any]], segments: list[str], query: str) -> None:
            path, parameters = route[0], route[1].get("parameters", [])
            for parameter in (part["name"] for part in parameters if part["in"] == "path"):
                path = path.replace("{" + parameter + "}", segments.pop())
            names = [part["name"] for part in parameters if part["in"] == "query"]
            try:
                request = http.build_request("GET", path, params=dict.fromkeys(names, query))
            except (httpx.InvalidURL, UnicodeError):
                return  # no client can send it
            answer = http.send(request)
            statuses.add(answer.status_code)
            require_sound(answer.status_code, answer.headers.get("content-type", ""), answer.content)

        check()
    assert statuses & {404, 422}


def test_unknown_path_method_and_media_type_get_advice(api: Api) -> None:
    with httpx.Client(base_url=api.url, headers=AUTHORIZATION) as http:
        for method, path, _ in api.operations():
            if method == "POST":
                for answer in (
                    http.put(path, json={}),
                    http.post(path, content=b"{}", headers={"Content-Type": "text/plain"}),
                    http.post(path, content=b"{}"),
                ):
                    assert answer.status_code in (404, 405, 415)
                    require_sound(answer.status_code, answer.headers["content-type"], answer.content)
        answer = http.get("/api/none/such")
        assert answer.status_code == 404
        require_sound(answer.status_code, answer.headers["content-type"], answer.content)
