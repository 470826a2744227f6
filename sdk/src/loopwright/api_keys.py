"""The file of API keys: make, list and revoke keys. The services read the file whenever it changes.

A key is `lw_<id>_<secret>` with 256 random bits. The file has only its SHA-256 digest, so reading the file gives no
access; writing it does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from loopwright.errors import LoopwrightError

SCOPES: tuple[str, ...] = ("chat", "ingest", "read", "operate", "erase")
"""chat: chat with the model. ingest: send feedback and responses. read: receipts, status, lineage. operate: operator
commands. erase: erasures."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOCK_SUFFIX = ".lock"


class KeyFileError(LoopwrightError):
    """The file of API keys cannot be used, or has no such key."""

    code = "key_file"


class ApiKeyEntry(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid")
    id: str
    name: str
    scopes: list[str]
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """Return `active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def public(self, now: datetime) -> dict[str, Any]:
        """Return the entry for people and programs, without the digest."""
        fields = self.model_dump(mode="json", exclude={"sha256"}, exclude_none=True)
        return {**fields, "state": self.state(now)}


class ApiKeyFile:
    """The file of API keys of a deployment. Changes are atomic, and one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[ApiKeyEntry]:
        """Return the entries in order of creation; none if the file does not exist.

        Raises:
            KeyFileError: The file cannot be read, or is not a file of API keys.

        """
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["version"] != 1:
                raise KeyFileError(
                    f"{self.path} was written by a newer version of loopwright: update loopwright"
                )
            return [ApiKeyEntry.model_validate(entry) for entry in document["keys"]]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeyFileError(
                f"{self.path} cannot be read ({error.strerror}): check its permissions"
            ) from error
        except (ValueError, KeyError, TypeError, ValidationError):
            raise KeyFileError(
                f"{self.path} is not a file of API keys, or is damaged: restore it from a backup, or name another file"
            ) from None

    def create(
        self, name: str, scopes: Sequence[str], lifetime: timedelta | None = None
    ) -> tuple[str, ApiKeyEntry]:
        """Make a key. Return it, and its entry; the key cannot be read from the file later.

        Raises:
            KeyFileError: The name is invalid or taken, a scope is unknown, or the file cannot be written.

        """
        if NAME.fullmatch(name) is None:
            raise KeyFileError(
                f"invalid name {name!r}: use 1 to 64 letters, digits and . _ @ -, starting with a letter or digit"
            )
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise KeyFileError(f"unknown scope {', '.join(unknown)}: use {', '.join(SCOPES)}" if unknown else
                               f"a key needs at least one scope: {', '.join(SCOPES)}")  # fmt: skip
        now = datetime.now(timezone.utc)
        with self._locked():
            entries = self.entries()
            if any(entry.name == name for entry in entries):
                raise KeyFileError(
                    f"{self.path} already has a key {name}: choose another name, because commands and erasures record "
                    f"it. To replace the key, make a new one, use it, and revoke {name}"
                )
            key_id = secrets.token_hex(6)
            key = f"lw_{key_id}_{secrets.token_urlsafe(32)}"
            entry = ApiKeyEntry(
                id=key_id,
                name=name,
                scopes=[scope for scope in SCOPES if scope in scopes],
                sha256=hashlib.sha256(key.encode()).hexdigest(),
                created_at=now,
                expires_at=now + lifetime if lifetime is not None else None,
            )
            self._write([*entries, entry])
        return key, entry

    def revoke(self, name_or_id: str) -> ApiKeyEntry:
        """Revoke a key by its name or id. Revoking it again changes nothing.

        Raises:
            KeyFileError: There is no such key, or the file cannot be written.

        """
        with self._locked():
            entries = self.entries()
            found = next((entry for entry in entries if name_or_id in (entry.name, entry.id)), None)
            if found is None:
                names = ", ".join(entry.name for entry in entries) or "none"
                raise KeyFileError(f"{self.path} has no key {name_or_id}: its keys are {names}")
            if found.revoked_at is None:
                found.revoked_at = datetime.now(timezone.utc)
                self._write(entries)
        return found

    def _write(self, entries: Sequence[ApiKeyEntry]) -> None:
        """Replace the file. Everybody may read it: services run as other users, and digests give no access."""
        document = {
            "version": 1,
            "keys": [entry.model_dump(mode="json", exclude_none=True) for entry in entries],
        }
        try:
            number, part = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(number, "w", encoding="utf-8") as file:
                    json.dump(document, file, indent=2)
                    file.write("\n")
                    file.flush()
                    os.fsync(file.fileno())
                Path(part).chmod(0o644)
                Path(part).replace(self.path)
            finally:
                Path(part).unlink(missing_ok=True)
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the file. Where the system has no file locks, nothing keeps them."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(self.path.name + LOCK_SUFFIX).open("a") as lock:
                _lock(lock.fileno())
                yield
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}") from error


def _lock(number: int) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    fcntl.flock(number, fcntl.LOCK_EX)
