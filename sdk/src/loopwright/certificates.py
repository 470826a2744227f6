"""Verify certificates of erasures, without a connection to the deployment (`loopwright[certificates]`)."""

from __future__ import annotations

import json

from loopwright.errors import LoopwrightError
from loopwright.models import SignedCertificate


class InvalidCertificate(LoopwrightError):
    """The certificate was altered, or another key signed it."""

    code = "invalid_certificate"


def verify(signed: SignedCertificate, public_key: str) -> None:
    """Check the signature of a certificate.

    Args:
        signed: The certificate, as the service returned it.
        public_key: The deployment's public key, from a source that you trust: whoever makes up a certificate can write
            a key of their own into it.

    Raises:
        InvalidCertificate: The signature does not fit the content and the key.
        ImportError: The package cryptography is not installed.

    """
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an optional dependency
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("certificates need cryptography: pip install 'loopwright[certificates]'") from error
    if signed.signature.public_key != public_key.strip().lower():
        raise InvalidCertificate(
            f"the certificate was signed with another key ({signed.signature.public_key}): check that it comes from "
            "this deployment, or verify it with the public key of that time"
        )
    content = json.dumps(signed.certificate, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key.strip()))
        key.verify(bytes.fromhex(signed.signature.value), content.encode())
    except (InvalidSignature, ValueError) as error:
        raise InvalidCertificate(
            "the signature does not fit the certificate: it was altered after it was signed. Request it again"
        ) from error
