"""Every endpoint of every service x every caller x every Host and Origin: who gets an answer.

The routes are read from the apps, behind the middleware that each service has. A route without a declared scope cannot
be served, and one that is not in `ENDPOINTS` fails here.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope

from loopwright.api_keys import ApiKeyFile
from services.feedback.service import FeedbackService
from services.feedback.settings import FeedbackSettings
from services.inference.service import build_app as build_inference
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from services.processor.service import build as build_processor
from services.processor.settings import ProcessorSettings
from services.rollout.service import build as build_rollout
from services.rollout.settings import RolloutSettings
from services.trainer.__main__ import build_app as build_trainer
from services.trainer.settings import TrainerSettings
from shared.adapters.access import Access
from shared.adapters.access_middleware import AccessMiddleware, route_rules, secure
from shared.adapters.access_rules import needs
from shared.adapters.http import add_service_routes
from shared.adapters.in_memory import InMemoryLog
from shared.api_keys import SCOPES
from shared.errors import Misconfigured
from shared.telemetry import Readiness
from tests.access import access_of, bearer, expiring_key, make_keys
from tests.console_app import console_app
from tests.inference_factories import BASE, LINE
from tests.unit.test_feedback_service import adapters

ROOT: Final = Path(__file__).resolve().parents[2]
HEALTH: Final = {"GET /livez": "health", "GET /readyz": "health", "GET /metrics": "health"}
PAGE: Final = "read"
ENDPOINTS: Final[dict[str, dict[str, str]]] = {
    "feedback": HEALTH
    | {
        "GET /v1/widget.js": "public",
        "POST /v1/feedback": "ingest",
        "POST /v1/responses": "ingest",
        "POST /v1/feedback-tokens": "ingest",
        "GET /v1/feedback/{response_id}/{event_id:path}": "read",
        "GET /v1/feedback/{ids:path}": "read",
        "POST /api/public/scores": "ingest",
        "DELETE /api/public/scores/{score_id:path}": "ingest",
        "POST /api/public/ingestion": "ingest",
        "POST /v1/erasure": "erase",
        "GET /v1/erasure/{request_id:path}": "erase",
        "GET /v1/erasure-certificates/{request_id:path}": "erase",
        "GET /v1/erasure-certificate-key": "read",
        "POST /v1/export": "erase",
        "POST /v1/feedback:bulk": "ingest",
        "POST /v1/responses:bulk": "ingest",
        "GET /openapi.json": "public",
        "GET /docs": "public",
        "GET /docs/oauth2-redirect": "public",
    },
    "inference": HEALTH
    | {
        "POST /v1/chat/completions": "chat",
        "GET /v1/models": "chat",
        "GET /v1/models/{model}": "chat",
        "GET /openapi.json": "public",
    },
    "console": HEALTH
    | {
        "GET /api/status": "read",
        "GET /api/versions": "read",
        "GET /api/rollout": "read",
        "GET /api/rollout/{line}": "read",
        "POST /api/commands": "operate",
        "GET /api/commands/{command_id}": "read",
        "GET /api/dead-letters": "read",
        "GET /api/dead-letters/{position}": "read",
        "GET /api/quarantine": "read",
        "GET /api/{rest:path}": "read",
        "POST /api/{rest:path}": "read",
        "PUT /api/{rest:path}": "read",
        "DELETE /api/{rest:path}": "read",
        "GET /openapi.json": "public",
        "GET /": PAGE,
        "POST /": PAGE,
    },
    "trainer": HEALTH
    | {
        "GET /api/lineage": "read",
        "GET /api/diff": "read",
        "GET /api/gate": "read",
        "GET /gate": "read",
        "GET /openapi.json": "public",
    },
}
VIEWS: Final = {"processor": build_processor, "rollout": build_rollout}
UNKNOWN: Final = ("wrong", "revoked", "expired", "no key", "no form")
CALLERS: Final = (*SCOPES, "all", *UNKNOWN)
PLACES: Final[dict[str, dict[str, str]]] = {
    "own": {"host": "loop.example.org"},
    "own page": {"host": "Loop.Example.ORG.", "origin": "https://loop.example.org:443"},
    "foreign host": {"host": "evil.example"},
    "foreign origin": {"host": "loop.example.org", "origin": "https://evil.example"},
    "rebound page": {"host": "evil.example", "origin": "http://evil.example"},
    "no origin": {"host": "loop.example.org", "origin": "null"},
    "bad host": {"host": "["},
}


def expected(scope: str, caller: str, place: str) -> int:
    """Return the status of a request."""
    if scope == "health":
        return 400 if place == "bad host" else 200
    if place not in ("own", "own page"):
        return 400 if place == "bad host" else 403
    if scope == "public":
        return 200
    if caller in UNKNOWN:
        return 401
    return 200 if caller in ("all", scope) else 403


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the Authorization of each caller."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = make_keys(path, {scope: [scope] for scope in SCOPES} | {"all": SCOPES, "revoked": SCOPES})
    made["expired"] = expiring_key(path, "expired", SCOPES, timedelta(seconds=-1))
    ApiKeyFile(path).revoke("revoked")
    made["wrong"] = made["all"][:-4] + "0000"
    return path, {name: f"Bearer {key}" for name, key in made.items()} | {"no form": "Bearer secret"}


@dataclass
class Services:
    """The apps of all services that are ASGI apps, with the same keys."""

    apps: dict[str, FastAPI]

    def guarded(self, service: str) -> AccessMiddleware:
        """Return the outermost middleware of a service, around an app that answers 200 to everything."""
        outermost = self.apps[service].user_middleware[0]
        assert outermost.cls is AccessMiddleware
        return AccessMiddleware(PlainTextResponse("ok"), **outermost.kwargs)


@pytest.fixture(scope="module")
def services(
    keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    path, _ = keys
    common: dict[str, Any] = {"api_keys": path, "hosts": frozenset({"loop.example.org"})}
    data = tmp_path_factory.mktemp("data")
    feedback = FeedbackService(
        FeedbackSettings(partitions=3), b"a key that is long enough", adapters(InMemoryLog(3), _access(path))
    )
    unused: Any = None  # the guarded apps run no handler
    inference = build_inference(
        InferenceSettings(**common), unused, VersionRegistry(LINE, BASE, unused), Readiness(), tuple
    )
    trainer = build_trainer(TrainerSettings(data_dir=data, **common), Readiness())
    with console_app(_access(path)) as console:
        yield Services(
            {"feedback": feedback.app, "inference": inference, "console": console, "trainer": trainer}
        )


def _access(path: Path) -> Access:
    return access_of(path, "loop.example.org")


def test_every_endpoint_is_known_with_its_scope(services: Services) -> None:
    found = {
        name: {
            f"{method} {each.path or '/'}": "health"
            if not each.rule.check_host
            else each.rule.scope or "public"
            for each in route_rules(app, _mounts(services, name))
            for method in each.methods or {"GET", "POST"}
            if method != "HEAD"
        }
        for name, app in services.apps.items()
    }
    assert found == ENDPOINTS


def _mounts(services: Services, name: str) -> Any:
    routes = services.apps[name].user_middleware[0].kwargs["routes"]()
    return next((each.rule for each in routes if each.path == ""), None)


@pytest.mark.parametrize(
    ("service", "endpoint"),
    [(service, endpoint) for service, endpoints in ENDPOINTS.items() for endpoint in endpoints],
    ids=str,
)
async def test_every_caller_gets_what_its_key_allows(
    services: Services, keys: tuple[Path, dict[str, str]], service: str, endpoint: str
) -> None:
    _, authorizations = keys
    method, path = endpoint.split(" ")
    concrete = path.replace("{response_id}", "r").replace(":path}", "}")
    for name in ("event_id", "ids", "request_id", "model", "line", "command_id", "position", "rest"):
        concrete = concrete.replace(f"{{{name}}}", "nothing-else" if name == "rest" else "a")
    transport = httpx.ASGITransport(services.guarded(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        for caller, (place, headers) in itertools.product(CALLERS, PLACES.items()):
            authorization = {"authorization": authorizations[caller]} if caller in authorizations else {}
            content = {"content-type": "application/json"}
            response = await http.request(method, concrete, headers=headers | authorization | content)
            scope = ENDPOINTS[service][endpoint]
            assert response.status_code == expected(scope, caller, place), (caller, place, response.text)
            if response.status_code != 200:
                _check_refusal(response, service)


def _check_refusal(response: httpx.Response, service: str) -> None:
    body = response.json()
    detail = body["error"]["message"] if service == "inference" else body["detail"]
    assert len(detail) > 20
    if response.status_code == 401:
        assert response.headers["www-authenticate"].split()[0] in ("Bearer", "Basic")
        assert "loopwright keys create" in detail
    if response.status_code == 403:
        assert any(
            remedy in detail for remedy in ("--scope", "LOOPWRIGHT_HOSTS", "LOOPWRIGHT_TRUSTED_PROXIES")
        )


@pytest.mark.parametrize("service", VIEWS)
async def test_views_of_the_stream_need_the_scope_read(
    service: str, keys: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path, authorizations = keys
    kind = {"processor": ProcessorSettings, "rollout": RolloutSettings}[service]
    app = VIEWS[service](kind(data_dir=tmp_path, api_keys=path, hosts=frozenset({"loop.example.org"})))
    app.web.init_server()
    paths = sorted({route.resource.canonical for route in app.web.web_app.router.routes() if route.resource})
    assert {"/livez", "/readyz", "/metrics", "/partitions"} < set(paths)
    async with TestClient(TestServer(app.web.web_app)) as http:
        for route, caller, (place, headers) in itertools.product(paths, CALLERS, PLACES.items()):
            authorization = {"authorization": authorizations[caller]} if caller in authorizations else {}
            scope = "health" if route in ("/livez", "/readyz", "/metrics") else "read"
            wanted = expected(scope, caller, place)
            if place == "bad host":  # aiohttp's parser or ours refuses it
                continue
            response = await http.get(
                route.replace("{", "").replace("}", ""), headers=headers | authorization
            )
            refused = response.status in (400, 401, 403)
            assert refused == (wanted != 200), (route, caller, place, response.status)
            assert not refused or response.status == wanted, (route, caller, place)


async def test_route_without_a_scope_is_not_served() -> None:
    app = FastAPI()

    @app.get("/new")
    async def new() -> str:
        return "secret"

    with pytest.raises(Misconfigured, match="/new declares no scope"):
        secure(app, Access())


async def test_route_that_is_added_after_the_check_is_not_served(tmp_path: Path) -> None:
    app = add_service_routes(FastAPI(), Readiness())
    secure(app, Access())

    @app.get("/late")
    async def late() -> str:
        return "secret"

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/late")).status_code == 500


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """An app with one route of each kind of request."""
    keys = make_keys(tmp_path / "keys.json", {"all": SCOPES})
    app = add_service_routes(FastAPI(), Readiness())

    @app.post("/send")
    @app.get("/page")
    @needs("read", page=True)
    async def page() -> str:
        return "ok"

    @app.post("/json")
    @app.delete("/json")
    @needs("read")
    async def json() -> str:
        return "ok"

    secure(app, access_of(tmp_path / "keys.json"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        yield http, keys


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/x-ndjson", 200),
        ("application/cloudevents+json", 200),
        ("text/plain", 415),
        ("text/plain;application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        (None, 415),
    ],
)
async def test_content_that_foreign_pages_can_send_is_refused(
    small: tuple[httpx.AsyncClient, dict[str, str]], content_type: str | None, status: int
) -> None:
    http, keys = small
    headers = bearer(keys["all"]) | ({"content-type": content_type} if content_type else {})
    assert (await http.post("/json", content=b"{}", headers=headers)).status_code == status
    assert (await http.request("DELETE", "/json", headers=bearer(keys["all"]))).status_code == 200


async def test_browsers_may_send_the_key_as_a_password(
    small: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    http, keys = small
    asked = await http.get("/page", headers={"accept": "text/html,*/*"})
    assert (asked.status_code, asked.headers["www-authenticate"].split()[0]) == (401, "Basic")
    assert (await http.get("/page", auth=("any", keys["all"]))).status_code == 200
    assert (await http.get("/page", auth=(keys["all"], ""))).status_code == 401
    assert (await http.get("/page", headers={"Authorization": "Basic !"})).status_code == 401


@pytest.mark.parametrize("name", ["host", "origin", "authorization"])
async def test_repeated_header_is_refused(small: tuple[httpx.AsyncClient, dict[str, str]], name: str) -> None:
    http, keys = small
    own = {"host": "127.0.0.1", "origin": "http://127.0.0.1", "authorization": f"Bearer {keys['all']}"}
    twice = [*own.items(), (name, own[name])]
    request = http.build_request("GET", "/page")
    request.headers = httpx.Headers(twice)
    assert (await http.send(request)).status_code == 400


@pytest.mark.parametrize(
    ("origin", "opened"), [("http://127.0.0.1:8080", True), ("http://evil.example", False)]
)
async def test_foreign_socket_is_refused_before_it_opens(tmp_path: Path, origin: str, opened: bool) -> None:
    keys = make_keys(tmp_path / "keys.json", {"all": SCOPES})
    reached, sent = [], []

    async def inner(scope: Scope, *_: Any) -> None:
        reached.append(scope["type"])

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    headers = {"host": "127.0.0.1:8080", "origin": origin} | bearer(keys["all"])
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    middleware = AccessMiddleware(inner, access_of(tmp_path / "keys.json"), lambda: ())
    await middleware({"type": "websocket", "path": "/ws", "headers": raw, "client": None}, receive, send)
    assert (reached, sent) == ((["websocket"], []) if opened else ([], ["websocket.close"]))
    await middleware({"type": "websocket", "path": "/ws", "headers": raw[:2], "client": None}, receive, send)
    assert sent[-1:] == ["websocket.close"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "origin", "status"),
    [
        ("10.0.0.9", "loop.example.org", "https://loop.example.org", 200),
        ("10.0.0.9", "evil.example, loop.example.org", "https://loop.example.org", 200),
        ("10.0.0.9", "loop.example.org, evil.example", "https://evil.example", 403),
        ("10.0.0.9", "loop.example.org", "http://loop.example.org", 403),
        ("10.0.0.9", "[", "https://loop.example.org", 400),
        ("203.0.113.5", "loop.example.org", "https://loop.example.org", 403),
    ],
)
async def test_forwarded_host_counts_only_from_trusted_proxies(
    tmp_path: Path, peer: str, forwarded: str, origin: str, status: int
) -> None:
    access = Access(hosts=["loop.example.org"], proxies=[ipaddress.ip_network("10.0.0.0/24")])
    app = AccessMiddleware(PlainTextResponse("ok"), access, lambda: ())
    transport = httpx.ASGITransport(app, client=(peer, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as http:
        headers = {"x-forwarded-host": forwarded, "x-forwarded-proto": "https", "origin": origin}
        assert (await http.get("/any", headers=headers)).status_code == status


@pytest.mark.parametrize("path", ["/loop/livez", "/livez"])
async def test_health_is_found_below_a_prefix(path: str) -> None:
    app = add_service_routes(FastAPI(), Readiness())
    secure(app, Access())
    transport = httpx.ASGITransport(app, root_path="/loop")
    async with httpx.AsyncClient(transport=transport, base_url="http://any.name") as http:
        assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("scope", SCOPES)
async def test_unknown_path_is_not_found_with_any_key_and_refused_without(tmp_path: Path, scope: str) -> None:
    key = make_keys(tmp_path / "keys.json", {"one": [scope]})["one"]
    app = add_service_routes(FastAPI(), Readiness())
    secure(app, access_of(tmp_path / "keys.json"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        assert (await http.post("/v1/embeddings", headers=bearer(key))).status_code == 404
        assert (await http.post("/v1/embeddings")).status_code == 401


def test_servers_pass_the_address_of_the_peer_on() -> None:
    """By default uvicorn believes X-Forwarded-For from loopback, so a page could claim to be a trusted proxy."""
    files = [file for folder in ("services", "shared") for file in (ROOT / folder).rglob("*.py")]
    configs = [
        call
        for file in files
        for call in re.findall(r"uvicorn\.Config\((?:[^()]|\([^()]*\))*\)", file.read_text())
    ]
    assert len(configs) >= 3
    assert [config for config in configs if "proxy_headers=False" not in config] == []


async def test_unusable_keys_close_every_route_but_health(tmp_path: Path) -> None:
    app = add_service_routes(FastAPI(), readiness := Readiness())
    access = access_of(tmp_path / "missing.json")
    readiness.watch("api_keys", lambda: access.problem)
    secure(app, access)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        refused = await http.get("/any", headers=bearer("lw_x"))
        assert (refused.status_code, refused.json()["code"]) == (503, "keys_unavailable")
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert "missing.json" in ready.json()["checks"]["api_keys"]
        assert (await http.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("service", "endpoint"),
    [(service, endpoint) for service, endpoints in ENDPOINTS.items() for endpoint in endpoints],
    ids=str,
)
async def test_without_keys_everything_but_erasures_is_allowed_to_own_pages(
    services: Services, service: str, endpoint: str
) -> None:
    method, path = endpoint.split(" ")
    guarded = services.guarded(service)
    open_guard = AccessMiddleware(
        PlainTextResponse("ok"), Access(hosts=["loop.example.org"]), guarded._routes, guarded._refuse
    )
    scope = ENDPOINTS[service][endpoint]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(open_guard), base_url="http://x") as http:
        for place, headers in PLACES.items():
            for authorization in ({}, {"authorization": "Bearer any"}):
                content = {"content-type": "application/json"}
                response = await http.request(method, path, headers=headers | authorization | content)
                wanted = (
                    403
                    if scope == "erase" and place in ("own", "own page")
                    else expected(scope, "all", place)
                )
                assert response.status_code == wanted, (place, response.text)
                if wanted == 403 and scope == "erase" and place == "own":
                    assert response.json()["code"] == "keys_required"
