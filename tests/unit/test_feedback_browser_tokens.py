"""Browser tokens: what a page may send with one, from where, and for how long."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loopwright import AsyncLoopwright, Loopwright
from loopwright.browser_tokens import sign_browser_token
from services.feedback.browser_tokens import BrowserTokens
from services.feedback.service import FeedbackService
from services.feedback.settings import FeedbackSettings
from shared.adapters.access import Access, BrowserGrant
from shared.adapters.access_rules import Denied
from shared.adapters.clock import ManualClock, SystemClock
from shared.adapters.in_memory import InMemoryLog
from shared.adapters.key_file import KeyFile
from shared.errors import Misconfigured
from shared.events import FEEDBACK, Feedback, parse_union
from shared.pseudonym import Pseudonymiser
from tests.access import bearer, make_keys
from tests.unit.test_feedback_service import adapters

KEY = "the token key of these tests, which is long"
PSEUDONYM_KEY = b"a key that is long enough"
PAGE = "https://app.example.org"
THUMBS = {"event_id": "e1", "response_id": "r1", "kind": "thumbs", "value": "up"}


@dataclass
class Door:
    """The feedback service with API keys and browser tokens."""

    http: httpx.AsyncClient
    log: InMemoryLog
    keys: dict[str, str]

    async def send(self, token: str, origin: str | None = PAGE, **fields: Any) -> httpx.Response:
        headers = bearer(token) | ({"origin": origin} if origin else {})
        return await self.http.post("/v1/feedback", json=THUMBS | fields, headers=headers)

    def events(self) -> list[Feedback]:
        return [parse_union(FEEDBACK, record.value) for record in self.log.records("feedback.events")]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    keys = make_keys(tmp_path / "keys.json", {"app": ["ingest"], "other": ["ingest"], "reader": ["read"]})
    clock, log = SystemClock(), InMemoryLog(3)
    tokens = BrowserTokens(KEY.encode(), clock)
    access = Access(
        KeyFile(tmp_path / "keys.json", clock),
        hosts=["feedback"],
        tokens=tokens,
        origins=[PAGE, "http://x:8"],
    )
    settings = FeedbackSettings(partitions=3, key_per_minute=5, token_per_minute=3)
    service = FeedbackService(settings, PSEUDONYM_KEY, adapters(log, access, tokens))
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://feedback") as http:
        yield Door(http, log, keys)


async def test_page_sends_feedback_with_a_token_of_its_server(door: Door) -> None:
    made = await door.http.post(
        "/v1/feedback-tokens", json={"response_id": "r1", "user_id": "ann"}, headers=bearer(door.keys["app"])
    )
    assert made.status_code == 201
    assert made.json()["token"].startswith("lwt_")
    sent = await door.send(made.json()["token"])
    assert sent.status_code == 202
    assert sent.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in sent.headers["vary"]
    assert [event.user_id for event in door.events()] == [Pseudonymiser(PSEUDONYM_KEY).of("ann")]
    assert (await door.send(made.json()["token"])).json()["status"] == "duplicate"


async def test_token_is_for_one_response_and_one_user(door: Door) -> None:
    of_ann = sign_browser_token("r1", key=KEY, user_id="ann")
    of_all = sign_browser_token("r1", key=KEY)
    for token, fields in (
        (of_ann, {"response_id": "r2"}),
        (of_ann, {"user_id": "bob"}),
        (of_all, {"response_id": "r2", "user_id": "ann"}),
        (of_all, {}),
    ):
        refused = await door.send(token, **fields)
        assert refused.status_code == 422, fields
        assert refused.headers["access-control-allow-origin"] == PAGE
    assert door.events() == []
    assert (await door.send(of_ann, user_id="ann")).status_code == 202
    assert (await door.send(of_all, user_id="bob", event_id="e2")).status_code == 202


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/feedback/r1/e1"), ("POST", "/v1/responses"), ("POST", "/v1/feedback-tokens"),
     ("POST", "/v1/erasure"), ("GET", "/v1/erasure/q"), ("GET", "/unknown")],
)  # fmt: skip
async def test_token_allows_nothing_else(door: Door, method: str, path: str) -> None:
    token = sign_browser_token("r1", key=KEY)
    response = await door.http.request(method, path, json={}, headers=bearer(token))
    assert (response.status_code, response.json()["code"]) == (403, "token_not_accepted")
    from_page = await door.http.request(method, path, json={}, headers=bearer(token) | {"origin": PAGE})
    assert from_page.status_code == 403
    assert "access-control-allow-origin" not in from_page.headers


async def test_only_configured_origins_may_use_tokens_and_none_may_use_keys(door: Door) -> None:
    token = sign_browser_token("r1", key=KEY, user_id="ann")
    for origin in ("https://evil.example", "http://app.example.org", "https://app.example.org:8443", "null"):
        refused = await door.send(token, origin)
        assert (refused.status_code, refused.json()["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in refused.headers
    with_key = await door.send(door.keys["app"], PAGE, user_id="ann")
    assert (with_key.status_code, with_key.json()["code"]) == (403, "foreign_origin")
    assert (await door.send(token, "https://APP.example.org:443")).status_code == 202
    assert (await door.send(token, None)).status_code == 200, "the same event, from a server"


async def test_browser_may_ask_first(door: Door) -> None:
    def asking(origin: str, method: str = "POST") -> dict[str, str]:
        return {"origin": origin, "access-control-request-method": method,
                "access-control-request-headers": "authorization,content-type"}  # fmt: skip

    allowed = await door.http.options("/v1/feedback", headers=asking(PAGE))
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, PAGE)
    assert allowed.headers["access-control-allow-methods"] == "POST"
    assert "Authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    for path, headers in (
        ("/v1/feedback", asking("https://evil.example")),
        ("/v1/feedback", asking("null")),
        ("/v1/responses", asking(PAGE)),
        ("/v1/feedback-tokens", asking(PAGE)),
        ("/v1/erasure", asking(PAGE)),
    ):
        refused = await door.http.options(path, headers=headers)
        assert refused.status_code == 403, path
        assert "access-control-allow-origin" not in refused.headers
    rebound = await door.http.options("/v1/feedback", headers=asking(PAGE) | {"host": "evil.example"})
    assert (rebound.status_code, rebound.json()["code"]) == (403, "foreign_host")


async def test_making_tokens_needs_the_scope_ingest(door: Door) -> None:
    for headers, status in (({}, 401), (bearer(door.keys["reader"]), 403)):
        response = await door.http.post("/v1/feedback-tokens", json={"response_id": "r1"}, headers=headers)
        assert response.status_code == status
    for body in ({}, {"response_id": ""}, {"response_id": "r", "lifetime_s": 59},
                 {"response_id": "r", "lifetime_s": 86_401}, {"response_id": "r", "more": 1}):  # fmt: skip
        response = await door.http.post("/v1/feedback-tokens", json=body, headers=bearer(door.keys["app"]))
        assert response.status_code == 422, body


async def test_clients_make_tokens(door: Door) -> None:
    transport = door.http._transport
    async with AsyncLoopwright(
        feedback_url="http://feedback", api_key=door.keys["app"], transport=transport
    ) as loop:
        made = await loop.browser_token("r1", "ann", lifetime_s=120)
    assert made.response_id == "r1"
    assert 100 < made.expires_at.timestamp() - time.time() <= 120
    assert (await door.send(made.token)).status_code == 202
    assert hasattr(Loopwright, "browser_token")


async def test_key_and_pages_of_a_response_have_limits_of_their_own(door: Door) -> None:
    on_r1 = [sign_browser_token("r1", key=KEY, user_id=user) for user in ("ann", "bob")]
    statuses = [(await door.send(on_r1[n % 2], event_id=f"e{n}")).status_code for n in range(4)]
    assert statuses == [202, 202, 202, 429], "the tokens of a response share its limit"
    on_r2 = sign_browser_token("r2", key=KEY, user_id="ann")
    assert (await door.send(on_r2, response_id="r2")).status_code == 202
    body = THUMBS | {"response_id": "r3"}
    headers = bearer(door.keys["app"])
    sent = [
        await door.http.post(
            "/v1/feedback", json=body | {"event_id": f"k{n}", "user_id": f"u{n}"}, headers=headers
        )
        for n in range(6)
    ]
    assert [response.status_code for response in sent] == [202] * 5 + [429]
    assert "one API key" in sent[-1].json()["detail"]
    assert int(sent[-1].headers["retry-after"]) >= 1
    recorded = {"response_id": "r4", "version": "v", "messages": [{"role": "user", "content": "q"}],
                "choices": [{"index": 0, "text": "a"}]}  # fmt: skip
    assert (await door.http.post("/v1/responses", json=recorded, headers=headers)).status_code == 429
    other = await door.http.post(
        "/v1/feedback", json=body | {"user_id": "z"}, headers=bearer(door.keys["other"])
    )
    assert other.status_code == 202


# --- the tokens themselves ------------------------------------------------------------------------------------------


def ids(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Generate ids; a URL cannot hold the two that are left out."""
    return st.text(characters, min_size=1, max_size=40).filter(lambda text: text not in (".", ".."))


ASCII_IDS = ids(st.characters(min_codepoint=33, max_codepoint=126))
IDS = ids(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["C", "Z"]))


@given(ASCII_IDS, st.one_of(st.none(), IDS), st.integers(60, 86_400))
def test_token_of_either_maker_allows_what_it_was_made_for(
    response_id: str, user_id: str | None, lifetime_s: int
) -> None:
    tokens = BrowserTokens(KEY.encode(), SystemClock())
    grant = BrowserGrant(response_id, user_id)
    assert tokens.redeem(tokens.issue(response_id, user_id, lifetime_s)[0]) == grant
    signed = sign_browser_token(response_id, key=KEY, user_id=user_id, lifetime_s=lifetime_s)
    assert tokens.redeem(signed) == grant


def is_refused(tokens: BrowserTokens, token: str) -> bool:
    try:
        tokens.redeem(token)
    except Denied as error:
        return error.status == 401
    return False


@given(st.data())
def test_changed_token_is_refused(data: st.DataObject) -> None:
    tokens = BrowserTokens(KEY.encode(), ManualClock())
    token, _ = tokens.issue("r1", "ann", 60)
    at = data.draw(st.integers(4, len(token) - 2))
    other = data.draw(st.sampled_from("abcXYZ019-_.="))
    if other != token[at]:
        assert is_refused(tokens, token[:at] + other + token[at + 1 :])


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    assert is_refused(BrowserTokens(KEY.encode(), ManualClock()), f"lwt_{text}")


@pytest.mark.parametrize("lifetime_s", [60, 3_600, 86_400])
def test_token_expires(lifetime_s: int) -> None:
    clock = ManualClock()
    tokens = BrowserTokens(KEY.encode(), clock)
    token, expires_at = tokens.issue("r1", None, lifetime_s)
    assert expires_at.timestamp() * 1000 == clock.now_ms() + lifetime_s * 1000
    clock.advance(lifetime_s - 1)
    assert tokens.redeem(token) == BrowserGrant("r1", None)
    clock.advance(1)
    assert is_refused(tokens, token)


NOW_S = ManualClock().now_ms() // 1000
CLAIMS: dict[str, Any] = {"aud": "loopwright-feedback", "rid": "r1", "iat": NOW_S, "exp": NOW_S + 60}


@pytest.mark.parametrize(
    "change",
    [{"aud": "other"}, {"aud": None}, {"rid": ""}, {"rid": 1}, {"rid": None}, {"sub": ""}, {"iat": NOW_S + 100},
     {"exp": NOW_S + 86_401}, {"exp": str(NOW_S + 60)}, {"exp": None}, {"iat": None}, {"exp": True},
     {"exp": NOW_S + 0.5}],
)  # fmt: skip
def test_signed_token_with_other_claims_is_refused(change: dict[str, Any]) -> None:
    claims = {name: value for name, value in (CLAIMS | change).items() if value is not None}
    tokens = BrowserTokens(KEY.encode(), ManualClock())
    assert not is_refused(tokens, "lwt_" + jwt.encode(CLAIMS, KEY, algorithm="HS256"))
    assert is_refused(tokens, "lwt_" + jwt.encode(claims, KEY, algorithm="HS256"))


def test_token_of_another_algorithm_or_key_is_refused() -> None:
    tokens = BrowserTokens(KEY.encode(), ManualClock())
    unsigned = jwt.encode(CLAIMS, None, algorithm="none")
    other_hash = jwt.encode(CLAIMS, KEY * 2, algorithm="HS512")
    other_key = jwt.encode(CLAIMS, KEY[::-1], algorithm="HS256")
    for token in (unsigned, other_hash, other_key):
        assert is_refused(tokens, f"lwt_{token}")


async def test_service_without_a_token_key_makes_and_accepts_none() -> None:
    service = FeedbackService(
        FeedbackSettings(partitions=3), PSEUDONYM_KEY, adapters(InMemoryLog(3), Access(hosts=["feedback"]))
    )
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://feedback") as http:
        made = await http.post("/v1/feedback-tokens", json={"response_id": "r1"})
        assert (made.status_code, made.json()["code"]) == (403, "tokens_not_configured")
        token = sign_browser_token("r1", key=KEY, user_id="ann")
        sent = await http.post("/v1/feedback", json=THUMBS, headers=bearer(token))
        assert sent.status_code == 401, "a token is never the same as no key"


def test_short_keys_and_wrong_origins_are_refused() -> None:
    with pytest.raises(ValidationError):
        FeedbackSettings(token_key="short" * 6)
    with pytest.raises(ValueError, match="32 characters"):
        sign_browser_token("r", key="short")
    for origin in ("*", "app.example.org", "https://app.example.org/", "null"):
        with pytest.raises(Misconfigured, match="LOOPWRIGHT_FEEDBACK_ORIGINS"):
            Access(origins=[origin])
