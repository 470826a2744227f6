"""Files that describe a running stack: the lock of its folder, its state, and its secrets."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from pathlib import Path
from typing import IO, Any

from deploy.local.errors import StackError


class StackLock:
    """Lock that allows one stack per folder. The kernel releases it when its process ends."""

    def __init__(self, root: Path) -> None:
        self.path = root / "run" / "stack.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StackError: if another process has it; names its pid.

        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StackError(
                f"a stack is already running in {self.path.parent.parent} "
                f"(process {owner_pid(self.path.parent.parent)}). "
                "Stop it with `python -m deploy.local down` (`make down`)."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def owner_pid(root: Path) -> int | None:
    """Return the pid of the process that runs the stack in this folder, or None if none is running."""
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
        # The owner has just taken the lock and is about to write its pid.
        time.sleep(0.01)
    raise StackError(f"{path} is locked by an unknown process. Find it with `lsof`.")


def write_state(root: Path, facts: dict[str, Any]) -> None:
    """Replace run/stack.json atomically."""
    path = root / "run" / "stack.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    part.replace(path)


def read_state(root: Path) -> dict[str, Any] | None:
    """Return the contents of run/stack.json, or None if no stack is running (the file may be a leftover)."""
    path = root / "run" / "stack.json"
    if owner_pid(root) is None or not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def delete_state(root: Path) -> None:
    """Delete run/stack.json."""
    (root / "run" / "stack.json").unlink(missing_ok=True)


def pseudonym_key(root: Path) -> str:
    """Return this installation's key for pseudonyms, creating it on first use.

    Without the key, records can no longer be assigned to a user.
    """
    return _secret(root / "pseudonym.key")


def token_key(root: Path) -> str:
    """Return the key that signs browser tokens, creating it on first use."""
    return _secret(root / "token.key")


def _secret(path: Path) -> str:
    """Return the secret in `path`; create it, readable only by its owner, if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_urlsafe(32))
        try:
            # Linking fails if the file exists: if two processes start at once, the first secret wins.
            os.link(part, path)
        except FileExistsError:
            return path.read_text().strip()
        finally:
            part.unlink()
    return path.read_text().strip()
