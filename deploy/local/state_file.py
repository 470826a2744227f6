"""What is on disk about a stack: who owns the folder, and where everything listens."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from pathlib import Path
from typing import IO, Any

from deploy.local.errors import StackError


class Ownership:
    """One stack per folder. The lock goes with its holder, however that ends."""

    def __init__(self, root: Path) -> None:
        self.path = root / "run" / "stack.lock"
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Become the owner, or say who is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StackError(
                f"a stack already runs in {self.path.parent.parent} (process {owner_of(self.path.parent.parent)}); "
                "stop it with `python -m deploy.local down` (`make down`)."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def owner_of(root: Path) -> int | None:
    """The process that owns the stack in this folder; None if no stack runs there."""
    path = root / "run" / "stack.lock"
    if not path.exists():
        return None
    for _ in range(100):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
            else:
                return None
        if text:
            return int(text)
        # Its new owner has the lock and is about to write its pid.
        time.sleep(0.01)
    raise StackError(f"{path} is locked by a process that does not say which; find it with `lsof`.")


def write_record(root: Path, facts: dict[str, Any]) -> None:
    """Replace run/stack.json; a reader sees the old one or the new one."""
    path = root / "run" / "stack.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    part.replace(path)


def read_record(root: Path) -> dict[str, Any] | None:
    """What run/stack.json says; None where no stack runs, whatever an earlier one left behind."""
    path = root / "run" / "stack.json"
    if owner_of(root) is None or not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def erase_record(root: Path) -> None:
    """The stack has stopped."""
    (root / "run" / "stack.json").unlink(missing_ok=True)


def pseudonym_key(root: Path) -> str:
    """This installation's key for pseudonyms.

    Whoever loses it can no longer tell which records belong to a user.
    """
    return _secret(root / "pseudonym.key")


def erasure_token(root: Path) -> str:
    """What an operator shows the feedback door to erase a user."""
    return _secret(root / "erasure.token")


def _secret(path: Path) -> str:
    """Made once, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_urlsafe(32))
        try:
            # A link fails where the name exists: of two that start at once, the first secret stands.
            os.link(part, path)
        except FileExistsError:
            return path.read_text().strip()
        finally:
            part.unlink()
    return path.read_text().strip()
