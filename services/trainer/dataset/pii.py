"""What in a text must not be learned by heart: keys that open something, and what reaches or names one person.

Patterns and check digits of libraries, no model: `docs/decisions/verification.md` says which, and what was measured.
Nothing here asks the network.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
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
"""(what it is, the text itself)"""

MIN_KEY_CHARS: Final = 20
KEY_ENTROPY: Final = 4.25
"""Bits per character. Random letters and digits have more from about 25 characters on; words and paths have less."""
REMEMBERED: Final = 65_536
_UNBROKEN: Final = re.compile(rf"[A-Za-z0-9+/=_-]{{{MIN_KEY_CHARS},}}")
_MIXED: Final = (re.compile(r"\d"), re.compile(r"[a-z]"), re.compile(r"[A-Z]"))
_REACHING: Final = re.compile(r"[@\d]")
"""No pattern of `personal_in` does without; most texts have neither."""
_ADDRESS: Final = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_PLACEHOLDER: Final = re.compile(r"(?:^|\.)example(?:\.(?:com|net|org))?$")
"""Names reserved for examples (RFC 2606): such an address reaches nobody."""
_ACCOUNT: Final = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}\b")
_CARD: Final = re.compile(
    r"(?<![\w-])(?<!\d )(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1?\d{1,3})?|3\d{3}([ -]?)\d{6}\2\d{5})"
    r"(?![\w-])(?! \d)"
)
"""As cards print their numbers: in fours, or 4-6-5; not the middle of something longer."""
_SOCIAL_SECURITY: Final = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")

T = TypeVar("T")


def memoized(find: Callable[[str], T]) -> Callable[[str], T]:
    """Texts are checked again and again while a dataset grows. Remembers what was found by the text's digest, and so
    neither the text nor, unless something was found, any part of it."""
    known: OrderedDict[bytes, T] = OrderedDict()

    def told(text: str) -> T:
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in known:
            known[key] = find(text)
            if len(known) > REMEMBERED:
                known.popitem(last=False)
        return known[key]

    return told


@lru_cache(maxsize=1)
def _detectors() -> tuple[BasePlugin, ...]:
    """All of the library's, but those that need a judgement of ours (`secret_in`, `personal_in`)."""
    apart = {Base64HighEntropyString, HexHighEntropyString, IPPublicDetector, KeywordDetector}
    known: Mapping[str, type[BasePlugin]] = get_mapping_from_secret_type_to_class()
    return tuple(known[kind]() for kind in sorted(known) if known[kind] not in apart)


@memoized
def find_secret(text: str) -> str | None:
    """What kind of secret the text holds, in the library's words; None if none was found."""
    known = next((one.secret_type for one in _detectors() if any(one.analyze_string(text))), None)
    if known is not None:
        return str(known)
    keyword = KeywordDetector()
    if any(keyword.analyze_line("text", line) for line in text.splitlines() if "=" in line or ":" in line):
        return str(keyword.secret_type)
    return "a long random string" if any(map(_looks_random, _UNBROKEN.findall(text))) else None


def _looks_random(token: str) -> bool:
    """Hexadecimal digits alone do not: commits, digests and ids are no secrets."""
    mixed = all(kind.search(token) for kind in _MIXED)
    return mixed and Base64HighEntropyString().calculate_shannon_entropy(token) > KEY_ENTROPY


def find_personal_data(text: str) -> Iterator[Finding]:
    """All that reaches or names one person, and is sure by its form. Names and street addresses are not: telling them
    from what users ask about takes understanding, and guessing it would hold back what they teach."""
    if not _REACHING.search(text):
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
    for address in IPPublicDetector().analyze_string(text):
        yield "a public IP address", address


def _is_address(text: str) -> bool:
    if _PLACEHOLDER.search(text.rsplit("@", 1)[1].lower()):
        return False
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True
