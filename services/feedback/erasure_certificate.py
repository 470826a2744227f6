"""Certificates of finished erasures: what was erased where and when, signed with the deployment's Ed25519 key.

The signature is over the certificate's canonical JSON (`shared.events.canonical_json`: sorted keys, no spaces, UTF-8),
so whoever has the public key can verify it without Loopwright (`docs/decisions/erasure-certificates.md`).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field

from services.feedback.core.erasure_status import ErasureStatus
from shared.errors import Misconfigured, NotYet
from shared.events import canonical_json, rfc3339
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    PROCESSOR_CHANGELOG,
    RESPONSE_SAMPLES,
    TOPICS,
    TRAINING_BATCHES,
)

ALGORITHM: Final = "Ed25519"
KEY_SETTING: Final = "LOOPWRIGHT_FEEDBACK_CERTIFICATE_KEY"
_KEY = re.compile(r"[0-9a-f]{64}")
_EXPIRES: Final = "expires by retention"
_REMOVALS: Final = {
    CHAT_RESPONSES.name: _EXPIRES,
    FEEDBACK_EVENTS.name: _EXPIRES,
    DEAD_LETTERS.name: _EXPIRES,
    RESPONSE_SAMPLES.name: _EXPIRES,
    FEEDBACK_TALLIES.name: _EXPIRES,
    TRAINING_BATCHES.name: "rewritten without the subject; replaced records are removed by compaction",
    PROCESSOR_CHANGELOG.name: "deleted; replaced records are removed by compaction",
    FEEDBACK_OUTCOMES.name: "keeps ids of responses and events, no content",
}
"""How the subject's content leaves each topic that had some."""


class TopicEntry(BaseModel):
    """One topic that had content of the subject."""

    model_config = ConfigDict(frozen=True)
    topic: str
    removal: str
    keep_days: int | None = Field(
        description="Retention in days; null if records are compacted, not expired."
    )


class Certificate(BaseModel):
    """What was erased. It has ids, counts and dates, never content."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["loopwright.erasure.certificate/1"] = "loopwright.erasure.certificate/1"
    request_id: str
    subject: str = Field(description="Pseudonym of the erased user.")
    issued_by: str | None = Field(description="Name of the API key that requested the erasure.")
    requested_at: str | None
    completed_at: str
    last_copies_deleted_by: str | None = Field(
        description="By then, Kafka has deleted the last copies in the topics that expire."
    )
    issued_at: str
    lines: tuple[str, ...]
    partitions: int
    responses: int
    signals: int
    batches_rewritten: int
    snapshots: int
    versions_trained_on_it: tuple[str, ...] = Field(description="They remain as they are.")
    topics: tuple[TopicEntry, ...]


class Signature(BaseModel):
    """Signature over the canonical JSON of `certificate`."""

    model_config = ConfigDict(frozen=True)
    algorithm: Literal["Ed25519"] = ALGORITHM
    public_key: str = Field(pattern="^[0-9a-f]{64}$")
    value: str = Field(pattern="^[0-9a-f]{128}$")


class SignedCertificate(BaseModel):
    """A certificate and its signature."""

    model_config = ConfigDict(frozen=True)
    certificate: Certificate
    signature: Signature


class PublicKey(BaseModel):
    """The key that verifies this deployment's certificates."""

    model_config = ConfigDict(frozen=True)
    algorithm: Literal["Ed25519"] = ALGORITHM
    public_key: str


class CertificateSigner:
    """Signs certificates with the key in `LOOPWRIGHT_FEEDBACK_CERTIFICATE_KEY`."""

    def __init__(self, seed: str) -> None:
        """Store the key.

        Raises:
            Misconfigured: if it is not 64 hex digits.

        """
        if not _KEY.fullmatch(seed.lower()):
            raise Misconfigured(
                f"{KEY_SETTING} is not a key: set it to 64 hex digits, made with `openssl rand -hex 32`"
            )
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        raw = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key = PublicKey(public_key=raw.hex())

    def sign(self, certificate: Certificate) -> SignedCertificate:
        """Return the certificate with its signature."""
        value = self._key.sign(canonical_json(certificate.model_dump(mode="json"))).hex()
        return SignedCertificate(
            certificate=certificate,
            signature=Signature(public_key=self.public_key.public_key, value=value),
        )


def certificate_of(status: ErasureStatus, now: datetime) -> Certificate:
    """Return the certificate of a finished erasure.

    Raises:
        NotYet: if it is not finished.

    """
    if status.status != "done" or status.completed_at is None:
        raise NotYet(
            f"the erasure {status.request_id} is not done, so there is no certificate yet: {status.detail} Try again "
            "when its status is `done`"
        )
    return Certificate(
        request_id=status.request_id,
        subject=status.subject,
        issued_by=status.issued_by,
        requested_at=_time(status.requested_at),
        completed_at=rfc3339(status.completed_at),
        last_copies_deleted_by=_time(status.deadline),
        issued_at=rfc3339(now),
        lines=status.lines,
        partitions=status.partitions_done,
        responses=status.responses,
        signals=status.signals,
        batches_rewritten=status.batches,
        snapshots=status.snapshots,
        versions_trained_on_it=status.versions,
        topics=tuple(
            TopicEntry(topic=name, removal=removal, keep_days=TOPICS[name].keep_days)
            for name, removal in _REMOVALS.items()
        ),
    )


def _time(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment is not None else None
