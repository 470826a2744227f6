"""API keys: their form, their scopes, and the file that lists them.

A key is `lw_<id>_<secret>`. The file has the SHA-256 digest of each key, never the key: the secret is 256 random bits,
so a slow password hash would add nothing (`docs/decisions/access.md`). `loopwright keys` writes the file; the SDK has
the same form in `loopwright/api_keys.py`, because it shares no code with the services.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Self, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import Malformed

Scope = Literal["chat", "ingest", "read", "operate", "erase"]
"""What a key allows: chat with the model; send feedback and responses; read receipts, status and lineage; send operator
commands; erase users."""
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
KEY_FORM: Final = re.compile(r"lw_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
UNKNOWN_DIGEST: Final = "0" * 64
"""Compared with the digest of a key whose id is unknown, so that an unknown id takes as long as a wrong secret."""

KeyFault = Literal["malformed", "unknown", "revoked", "expired"]


class ApiKey(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=NAME_PATTERN, description="Recorded with commands and erasures as `issued_by`.")
    scopes: frozenset[Scope] = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Digest of the whole key.")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1]
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The keys of a file, by id."""

    keys: Mapping[str, ApiKey]

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the file.

        Raises:
            Malformed: if it is not complete and valid. The message contains none of its values.

        """
        try:
            file = _KeyFile.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise Malformed(f"{where}: {fault['msg']}") from None
        keys = {key.id: key for key in file.keys}
        if len(keys) < len(file.keys):
            raise Malformed("two keys have the same id")
        return cls(keys)

    def find(self, presented: str, now: datetime) -> ApiKey | KeyFault:
        """Return the key that was presented, or why it is refused. The comparison takes constant time."""
        form = KEY_FORM.fullmatch(presented)
        if form is None:
            return "malformed"
        key = self.keys.get(form[1])
        digest = hashlib.sha256(presented.encode()).hexdigest()
        if not hmac.compare_digest(digest, key.sha256 if key else UNKNOWN_DIGEST) or key is None:
            return "unknown"
        return key_fault(key, now) or key


def key_fault(key: ApiKey, now: datetime) -> KeyFault | None:
    """Return why a key can no longer be used, or None."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and now >= key.expires_at:
        return "expired"
    return None
