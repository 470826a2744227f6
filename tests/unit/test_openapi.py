"""The OpenAPI documents are valid, current and complete.

`tests/integration/test_http_conformance.py` sends every API what its document allows, and what it does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openapi_spec_validator import validate

from tests.http_apis import APPS, FOLDER, authorization, documents

BASE_URL = "http://127.0.0.1"
AUTHORIZATION = authorization()


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in FOLDER.iterdir()}


@pytest.fixture(scope="module", params=sorted(APPS))
def api(request: pytest.FixtureRequest) -> Iterator[tuple[str, FastAPI]]:
    with APPS[request.param]() as app:
        yield request.param, app


def test_published_documents_are_those_of_the_running_apps(published: dict[str, dict[str, Any]]) -> None:
    assert published == json.loads(json.dumps(documents())), "run `make openapi`"


@pytest.mark.parametrize("name", sorted(APPS))
def test_document_is_valid_openapi(published: dict[str, dict[str, Any]], name: str) -> None:
    validate(published[name])


@pytest.mark.parametrize("name", sorted(APPS))
def test_every_route_says_what_it_does_and_how_it_fails(
    published: dict[str, dict[str, Any]], name: str
) -> None:
    for path, operations in published[name]["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
            assert "default" in operation["responses"], (method, path)
            if method == "post":
                (content,) = operation["requestBody"]["content"].values()
                assert content["examples"], (method, path)


def test_every_example_is_accepted(api: tuple[str, FastAPI]) -> None:
    name, app = api
    client = TestClient(app, base_url=BASE_URL)
    for path, operations in app.openapi()["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        for media_type, content in (body or {"content": {}})["content"].items():
            for title, example in content["examples"].items():
                value = example["value"]
                raw = value if isinstance(value, str) else json.dumps(value)
                answer = client.post(path, content=raw, headers={"Content-Type": media_type} | AUTHORIZATION)
                assert answer.is_success or _is_about_an_unknown_version(answer.json()), (name, path, title)


def _is_about_an_unknown_version(problem: dict[str, Any]) -> bool:
    return problem.get("code") == "unknown_version"
