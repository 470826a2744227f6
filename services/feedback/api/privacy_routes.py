"""Routes for what a user may ask for: a certificate of their erasure, and everything that the log has about them."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import TypeAdapter
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from services.feedback.core.ndjson import MEDIA_TYPE
from services.feedback.erasure_certificate import (
    KEY_SETTING,
    CertificateSigner,
    PublicKey,
    SignedCertificate,
    certificate_of,
)
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.export_handler import EXPORT_BODY, EXPORT_EXAMPLES, ExportHandler
from shared.adapters.access_rules import needs
from shared.adapters.http import problem
from shared.adapters.openapi import json_body, path_parameter, problems
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable
from shared.events import Id, from_ms

CERTIFICATES: Final = "/v1/erasure-certificates/"
KEY_PATH: Final = "/v1/erasure-certificate-key"
ID_SCHEMA: Final = TypeAdapter(Id).json_schema()
EXPORT_ANSWER: Final[dict[str, Any]] = {
    "description": "One JSON object per line: topic, partition, offset, append time, content. The last line says "
    "whether the export is complete.",
    "content": {MEDIA_TYPE: {"schema": {"type": "object"}}},
}


def add_privacy_routes(
    app: FastAPI,
    erasure: ErasureHandler,
    erasures: TopicFollower,
    exports: ExportHandler,
    signer: CertificateSigner | None,
) -> None:
    """Add the routes of certificates and exports. Without a signer, requests for certificates get 403."""

    @app.get(
        CERTIFICATES + "{request_id:path}",
        response_model=SignedCertificate,
        responses=problems(403, 404, 503),
        openapi_extra={
            "parameters": [path_parameter("request_id", ID_SCHEMA, "Id of the erasure; a slash as %2F.")]
        },
    )
    @needs("erase")
    async def get_certificate(request: Request) -> Response:
        """Certify a finished erasure: topics, batches, snapshots, versions and dates, signed with Ed25519."""
        if signer is None:
            return _no_key()
        if not erasures.caught_up:
            raise BrokerUnavailable(
                "feedback is still reading the erasures from Kafka: try again in a few seconds"
            )
        raw: bytes = request.scope["raw_path"]
        request_id = unquote(raw.split(b"?")[0].decode("ascii", "replace").partition(CERTIFICATES)[2])
        certificate = certificate_of(erasure.get_status(request_id), from_ms(erasure.clock.now_ms()))
        return JSONResponse(signer.sign(certificate).model_dump(mode="json"))

    @app.get(KEY_PATH, response_model=PublicKey, responses=problems(403))
    @needs("read")
    async def get_certificate_key() -> Response:
        """Return the public key that verifies this deployment's certificates."""
        return _no_key() if signer is None else JSONResponse(signer.public_key.model_dump(mode="json"))

    @app.post(
        "/v1/export",
        response_class=StreamingResponse,
        responses=problems(403, 408, 413, 415, 422, 429, 503, besides={200: EXPORT_ANSWER}),
        openapi_extra=json_body(EXPORT_BODY, EXPORT_EXAMPLES),
    )
    @needs("erase")
    async def post_export(request: Request) -> Response:
        """Return everything that the log has about a user, as lines of JSON. Reads the whole log."""
        lines = await run_in_threadpool(exports.begin, await request.body())
        return StreamingResponse(iterate_in_threadpool(lines), media_type=MEDIA_TYPE)


def _no_key() -> JSONResponse:
    return problem(
        403,
        "certificates_not_configured",
        "Certificates are not configured",
        f"{KEY_SETTING} is not set, so this service signs no certificates: set it to the output of "
        "`openssl rand -hex 32`, and restart feedback",
    )
