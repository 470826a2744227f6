"""Complete the OpenAPI documents that FastAPI makes: request bodies that a service parses itself, and problems.

FastAPI documents what its own parser reads. The services parse bodies themselves, to bound them and to keep users' text
out of errors, so their schemas are added here. `docs/schemas/` has the documents; `tests/openapi_documents.py` writes
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Json = dict[str, Any]
JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
_REFERENCE: Final = "#/components/schemas/{model}"
_DEFINITIONS: Final = "$defs"
_MEANINGS: Final[Mapping[int, str]] = {
    400: "The request is not valid HTTP, or misses a Host.",
    401: "No key or token, or one that is not valid.",
    403: "The key, host or page may not do this.",
    404: "There is no such object, or not yet.",
    408: "The body did not arrive in time.",
    409: "The id was used before with other content, which stands.",
    413: "The body, or the record that it would become, is too large.",
    415: "The Content-Type is not the expected one.",
    422: "The request is not valid; `detail` names the field and what to send instead.",
    429: "A rate limit is reached; `Retry-After` says when to try again.",
    503: "The log or another part is away; send the request again under the same id.",
}


class Problem(BaseModel):
    """RFC 9457 problem document. `detail` says what to do; `code` is stable, for programs."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(examples=["urn:loopwright:problem:conflict"])
    title: str
    status: int = Field(ge=400, le=599)
    code: str = Field(examples=["conflict"])
    detail: str


def problems(
    *statuses: int,
    besides: Mapping[int, Json] | None = None,
    media_type: str = PROBLEM_JSON,
    schema: str = "Problem",
) -> dict[int | str, Json]:
    """Return the `responses` of a route: problems for these statuses and every other error, and those of `besides`."""
    content = {media_type: {"schema": {"$ref": _REFERENCE.format(model=schema)}}}
    errors: dict[int | str, Json] = {
        status: {"description": _MEANINGS[status], "content": content} for status in statuses
    }
    errors["default"] = {"description": "Any other error.", "content": content}
    return errors | dict((besides or {}).items())


def json_body(adapter: TypeAdapter[Any], examples: Mapping[str, Json], *, media_type: str = JSON) -> Json:
    """Return the `openapi_extra` of a route that parses its body with `adapter`. `examples` are named values."""
    schema = adapter.json_schema(ref_template=_REFERENCE)
    named = {name: {"value": value} for name, value in examples.items()}
    content = {media_type: {"schema": schema, "examples": named}}
    return {"requestBody": {"required": True, "content": content}}


def path_parameter(name: str, schema: Json, description: str) -> Json:
    """Return a parameter of a path whose raw form a route reads itself."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def publish_openapi(app: FastAPI, description: str, *models: type[BaseModel]) -> FastAPI:
    """Make `app` serve a complete document at `/openapi.json`. `models` are schemas that its routes name by reference.

    The document is made once, at the first request for it, so routes may be added until then.
    """

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=description,
                routes=app.routes,
                license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            )
            app.openapi_schema = _with_components(document, (Problem, *models))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _with_components(document: Json, models: tuple[type[BaseModel], ...]) -> Json:
    """Move all definitions within the document to its components, add those of `models`, and problems to all routes.

    Raises:
        ValueError: if two different schemas have one name.

    """
    schemas: Json = document.setdefault("components", {}).setdefault("schemas", {})
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        _add(schemas, {**schema.pop(_DEFINITIONS, {}), model.__name__: schema})
    for operation in (each for methods in document["paths"].values() for each in methods.values()):
        operation["responses"].setdefault("default", problems()["default"])
    _move_definitions(document["paths"], schemas)
    _move_definitions(schemas, schemas)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _move_definitions(part: Any, schemas: Json) -> None:
    if isinstance(part, dict):
        _add(schemas, part.pop(_DEFINITIONS, {}))
        for each in list(part.values()):
            _move_definitions(each, schemas)
    elif isinstance(part, list):
        for each in part:
            _move_definitions(each, schemas)


def _add(schemas: Json, definitions: Json) -> None:
    for name, schema in definitions.items():
        if schemas.setdefault(name, schema) != schema:
            raise ValueError(f"two schemas are named {name}: rename one of the models")
