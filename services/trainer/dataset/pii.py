"""Detectors of secrets and of personal data, which a model must not memorise.

They use the patterns and check digits of libraries, no model and no network. docs/decisions/verification.md says which
libraries, and what they find.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address
from typing import Final, TypeVar

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString
from detect_secrets.plugins.ip_public import IPPublicDetector
from detect_secrets.plugins.keyword import KeywordDetector
from email_validator import EmailNotValidError, validate_email
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn
from stdnum.us import ssn

Finding = tuple[str, str]
"""(kind, the text found)"""

MIN_KEY_CHARS: Final = 20
KEY_ENTROPY: Final = 4.25
"""Minimum entropy in bits per character. Random strings of 25 characters or more exceed it; words and paths do not."""
MEMO_SIZE: Final = 65_536
"""Number of texts whose result is memoized."""
_UNBROKEN: Final = re.compile(rf"[A-Za-z0-9+/=_-]{{{MIN_KEY_CHARS},}}")
_MIXED: Final = (re.compile(r"\d"), re.compile(r"[a-z]"), re.compile(r"[A-Z]"))
_CANDIDATE: Final = re.compile(r"[@\d]")
"""Required by every pattern of `find_personal_data`; most texts have neither character."""
_ADDRESS: Final = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_PLACEHOLDER: Final = re.compile(r"(?:^|\.)example(?:\.(?:com|net|org))?$")
"""Domains reserved for examples (RFC 2606), whose addresses reach no one."""
_ACCOUNT: Final = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}\b")
_CARD: Final = re.compile(
    r"(?<![\w-])(?<!\d )(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1?\d{1,3})?|3\d{3}([ -]?)\d{6}\2\d{5})"
    r"(?![\w-])(?! \d)"
)
"""Card numbers as printed, in groups of 4, or 4-6-5, and not within a longer number."""
_SOCIAL_SECURITY: Final = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_IP_ADDRESS: Final = re.compile(
    r"(?<![A-Za-z0-9_.:])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?[A-Za-z0-9_-])"
    r"|(?:[0-9A-Fa-f]{1,4}:){2,7}(?::|[0-9A-Fa-f:]+)(?![A-Za-z0-9_]))"
)
"""IPv4, and IPv6 from three groups on: shorter ones look like names in code."""

T = TypeVar("T")


def memoized(find: Callable[[str], T]) -> Callable[[str], T]:
    """Memoize the result of a detector by the digest of the text.

    The same texts are checked each time a dataset grows. Only results are kept in memory, not the texts.
    """
    known: OrderedDict[bytes, T] = OrderedDict()

    def memoized_find(text: str) -> T:
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in known:
            known[key] = find(text)
            if len(known) > MEMO_SIZE:
                known.popitem(last=False)
        return known[key]

    return memoized_find


@lru_cache(maxsize=1)
def _detectors() -> tuple[BasePlugin, ...]:
    """Return the library's detectors, except those that `find_secret` and `find_personal_data` use in their own way."""
    excluded = {Base64HighEntropyString, HexHighEntropyString, IPPublicDetector, KeywordDetector}
    known: Mapping[str, type[BasePlugin]] = get_mapping_from_secret_type_to_class()
    return tuple(known[kind]() for kind in sorted(known) if known[kind] not in excluded)


@memoized
def find_secret(text: str) -> str | None:
    """Return the kind of secret that the text contains, as the library names it, or None."""
    known = next(
        (detector.secret_type for detector in _detectors() if any(detector.analyze_string(text))), None
    )
    if known is not None:
        return str(known)
    keyword = KeywordDetector()
    if any(keyword.analyze_line("text", line) for line in text.splitlines() if "=" in line or ":" in line):
        return str(keyword.secret_type)
    return "a long random string" if any(map(_looks_random, _UNBROKEN.findall(text))) else None


def _looks_random(token: str) -> bool:
    """Return whether a token is random. Hexadecimal ones are not: commits, digests and ids are no secrets."""
    mixed = all(kind.search(token) for kind in _MIXED)
    return mixed and Base64HighEntropyString().calculate_shannon_entropy(token) > KEY_ENTROPY


def find_personal_data(text: str) -> Iterator[Finding]:
    """Yield what identifies or reaches a person and is certain by its form.

    Names and street addresses are not: to tell them from what users ask about requires understanding, and a guess would
    quarantine useful corrections.
    """
    if not _CANDIDATE.search(text):
        return
    for match in _ADDRESS.finditer(text):
        if _is_address(match[0]):
            yield "an e-mail address", match[0]
    for number in PhoneNumberMatcher(text, None, leniency=Leniency.VALID):
        yield "a phone number", number.raw_string
    for match in _ACCOUNT.finditer(text):
        if iban.is_valid(match[0]):
            yield "a bank account (IBAN)", match[0]
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])):
            yield "a payment card", match[0]
    for match in _SOCIAL_SECURITY.finditer(text):
        if ssn.is_valid(match[0]):
            yield "a US social security number", match[0]
    yield from (
        ("a public IP address", match[0]) for match in _IP_ADDRESS.finditer(text) if _is_public(match[0])
    )


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    if _PLACEHOLDER.search(text.rsplit("@", 1)[1].lower()):
        return False
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True
