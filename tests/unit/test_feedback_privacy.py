"""Certificates of erasures, and exports of everything about a user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from loopwright.certificates import InvalidCertificate, verify
from loopwright.cli import app as cli
from loopwright.models import SignedCertificate
from services.feedback.erasure_certificate import CertificateSigner
from services.feedback.export_handler import records_of
from shared.errors import BrokerUnavailable, Misconfigured
from shared.events import Batch, ChatResponse, Choice, ErasureReport, ExampleRevision, Message, Signal
from shared.pseudonym import Pseudonymiser
from shared.records import Output, Record
from shared.topics import DEAD_LETTERS, TOPICS
from tests.http_apis import KEY, LINE, Feedback, authorization

SUBJECT = Pseudonymiser(KEY.encode()).of("ann")
OTHER = Pseudonymiser(KEY.encode()).of("bob")
AT = datetime(2026, 3, 5, tzinfo=UTC)
VERSION = f"{LINE}@v1-1f2e3d4c"
Json = dict[str, Any]


@pytest.fixture
def service() -> Iterator[Feedback]:
    with Feedback().running() as feedback:
        yield feedback


async def request(service: Feedback, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", headers=authorization()
    ) as http:
        return await http.request(method, path, **options)


async def erase(service: Feedback, request_id: str = "q/1") -> None:
    """Erase ann, with the reports that the processor and the trainer write."""
    answer = await request(service, "POST", "/v1/erasure", json={"user_id": "ann", "request_id": request_id})
    assert answer.status_code == 202
    common: Json = {"line": LINE, "request_id": request_id, "subject": SUBJECT, "completed_at": AT}
    reports = [
        ErasureReport(
            **common, service="processor", partition=n, partitions=3, responses=1, batches={"a-0-1": 1}
        )
        for n in range(3)
    ]
    reports.append(ErasureReport(**common, service="trainer", versions=(VERSION,), snapshots=2))
    reports.append(ErasureReport(**common | {"line": "a"}, service="trainer"))
    for report in reports:
        service.log.append(Output("erasure.reports", b"q", report.to_json()))
    service.service._erasures.apply(service.log.records("erasure.reports"))


async def certificate(service: Feedback, request_id: str = "q%2F1") -> httpx.Response:
    return await request(service, "GET", f"/v1/erasure-certificates/{request_id}")


# --- certificates -------------------------------------------------------------------------------------------------


async def test_certificate_lists_what_was_erased_and_verifies_offline(service: Feedback) -> None:
    await erase(service)
    signed = SignedCertificate.model_validate((await certificate(service)).json())
    listed = signed.certificate
    assert (listed["request_id"], listed["subject"], listed["issued_by"]) == ("q/1", SUBJECT, "all")
    assert (listed["versions_trained_on_it"], listed["snapshots"], listed["responses"]) == ([VERSION], 2, 3)
    assert listed["completed_at"] == "2026-03-05T00:00:00Z"
    assert listed["last_copies_deleted_by"] > listed["requested_at"]
    assert {topic["topic"] for topic in listed["topics"]} <= TOPICS.keys()
    assert "training.batches" in {topic["topic"] for topic in listed["topics"]}
    key = (await request(service, "GET", "/v1/erasure-certificate-key")).json()["public_key"]
    verify(signed, key)


async def test_certificate_of_an_unfinished_or_unknown_erasure_is_404(service: Feedback) -> None:
    await request(service, "POST", "/v1/erasure", json={"user_id": "ann", "request_id": "q2"})
    for request_id in ("q2", "unknown"):
        assert (await certificate(service, request_id)).status_code == 404


async def test_altered_certificate_or_another_key_is_refused(service: Feedback) -> None:
    await erase(service)
    document = (await certificate(service)).json()
    key = document["signature"]["public_key"]
    other = CertificateSigner("22" * 32).public_key.public_key
    with pytest.raises(InvalidCertificate, match="another key"):
        verify(SignedCertificate.model_validate(document), other)
    for name, value in document["certificate"].items():
        altered = document | {"certificate": document["certificate"] | {name: [value, "x"]}}
        with pytest.raises(InvalidCertificate, match="altered"):
            verify(SignedCertificate.model_validate(altered), key)
    forged = json.loads(json.dumps(document))
    forged["signature"]["public_key"] = other
    with pytest.raises(InvalidCertificate, match="altered"):
        verify(SignedCertificate.model_validate(forged), other)


@pytest.mark.parametrize("seed", ["", "11", "z" * 64, "1" * 63])
def test_certificate_key_that_is_no_key_stops_the_start(seed: str) -> None:
    with pytest.raises(Misconfigured, match="openssl rand -hex 32"):
        CertificateSigner(seed)


async def test_without_a_key_certificates_are_refused_with_the_remedy() -> None:
    service = Feedback()
    service.settings = service.settings.model_copy(update={"certificate_key": None})
    service.__post_init__()
    with service.running():
        for path in ("/v1/erasure-certificates/q", "/v1/erasure-certificate-key"):
            refused = await request(service, "GET", path)
            assert (refused.status_code, refused.json()["code"]) == (403, "certificates_not_configured")


async def test_command_line_verifies_a_certificate_offline(service: Feedback, tmp_path: Path) -> None:
    await erase(service)
    document = (await certificate(service)).json()
    file = tmp_path / "erasure.json"
    key = document["signature"]["public_key"]
    file.write_text(json.dumps(document, indent=2))
    good = CliRunner().invoke(cli, ["certificate", "verify", str(file), "--public-key", key])
    assert (good.exit_code, "valid" in good.output) == (0, True), good.output
    file.write_text(json.dumps(document).replace('"snapshots": 2', '"snapshots": 0'))
    bad = CliRunner().invoke(cli, ["certificate", "verify", str(file), "--public-key", key])
    assert (bad.exit_code, "altered" in bad.output) == (1, True), bad.output
    file.write_text("{}")
    assert CliRunner().invoke(cli, ["certificate", "verify", str(file), "--public-key", key]).exit_code == 1


# --- exports ------------------------------------------------------------------------------------------------------


def example(asked_by: str, response_id: str, *signals_by: str) -> ExampleRevision:
    return ExampleRevision(
        line=LINE,
        response_id=response_id,
        revision=1,
        op="upsert",
        version=VERSION,
        user_id=asked_by,
        messages=(Message(role="user", content=f"question of {response_id}"),),
        choices=(Choice(index=0, text="answer"),),
        signals=tuple(
            Signal(
                event_id=f"e-{user}",
                kind="correction",
                user_id=user,
                value=f"words of {user}",
                occurred_at=AT,
            )
            for user in signals_by
        ),
        responded_at=AT,
        revised_at=AT,
    )


def batch(*examples: ExampleRevision) -> Batch:
    return Batch(
        line=LINE,
        batch_id="assistant-0-1",
        partition=0,
        number=1,
        reason="count",
        examples=examples,
        content_hash=Batch.hash_of(examples),
        cut_at=AT,
    )


async def export(service: Feedback, **body: str) -> list[Json]:
    answer = await request(service, "POST", "/v1/export", json=body or {"user_id": "ann"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_export_has_everything_of_the_user_and_nothing_of_others(service: Feedback) -> None:
    for user, event_id in (("ann", "e1"), ("bob", "e2")):
        body = {"response_id": "r1", "event_id": event_id, "user_id": user, "kind": "thumbs", "value": "up"}
        assert (await request(service, "POST", "/v1/feedback", json=body)).status_code == 202
        recorded = {
            "response_id": f"r-{user}",
            "version": "v",
            "user_id": user,
            "messages": [{"role": "user", "content": f"secret of {user}"}],
            "choices": [{"text": "ok"}],
        }
        assert (await request(service, "POST", "/v1/responses", json=recorded)).status_code == 202
    asked, judged, foreign = (
        example(SUBJECT, "x1", SUBJECT, OTHER),
        example(OTHER, "x2", SUBJECT),
        example(OTHER, "x3"),
    )
    service.log.append(Output("training.batches", b"b", batch(asked, judged, foreign).to_json()))
    *records, end = await export(service)
    assert end == {"complete": True, "subject": SUBJECT, "records": len(records)}
    assert [record["topic"] for record in records] == [
        "chat.responses", "feedback.events", "training.batches", "training.batches"
    ]  # fmt: skip
    assert records[0]["content"]["messages"][0]["content"] == "secret of ann"
    assert records[2]["content"]["example"]["messages"][0]["content"] == "question of x1"
    assert [signal["user_id"] for signal in records[2]["content"]["example"]["signals"]] == [SUBJECT]
    assert records[3]["content"]["feedback_on"] == "x2"
    text = json.dumps(records)
    assert "bob" not in text
    assert OTHER not in text.replace("user_id", "")
    assert "question of x2" not in text
    assert await export(service, subject=SUBJECT) == [*records, end]


async def test_erased_user_has_only_the_proof_of_the_erasure(service: Feedback) -> None:
    await erase(service)
    *records, end = await export(service)
    assert {record["topic"] for record in records} == {"erasure.requests", "erasure.reports"}
    assert end["complete"]


async def test_export_that_cannot_read_the_log_says_so_and_the_next_one_works(
    service: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise BrokerUnavailable("Kafka is away: try again later")

    with monkeypatch.context() as broken:
        broken.setattr("shared.adapters.in_memory.InMemoryLogRanges.read", away)
        (end,) = await export(service)
        assert (end["complete"], end["code"]) == (False, "broker_unavailable")
    assert (await export(service))[-1]["complete"]


@given(st.binary(max_size=60), st.sampled_from(sorted(TOPICS)))
def test_no_record_on_a_topic_breaks_an_export(noise: bytes, topic: str) -> None:
    for value in (noise + SUBJECT.encode(), b'{"user_id": "' + SUBJECT.encode() + b'"' + noise, None):
        assert isinstance(records_of(Record(topic, 0, 0, 0, b"k", value), SUBJECT), list)


def test_dead_letter_of_the_user_is_exported() -> None:
    response = ChatResponse(
        line=LINE, response_id="r", version="v", user_id=SUBJECT,
        messages=(Message(role="user", content="hi"),), created_at=AT,
    )  # fmt: skip
    record = Record(DEAD_LETTERS.name, 0, 0, 0, b"k", response.to_json())
    assert records_of(record, SUBJECT)[0]["response_id"] == "r"
