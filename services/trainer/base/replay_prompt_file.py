"""File of an operator's own general prompts for replay data (`base/replay_prompts.py`).

One prompt per line: plain text, or JSON objects with the field `prompt` if the file's name ends in `.jsonl`. Prompts
that occur more than once count once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from shared.errors import Misconfigured

MAX_CHARS: Final = 8000
MAX_REPORTED_ERRORS: Final = 5


def read_replay_prompts(path: Path) -> list[str]:
    """Read a file of prompts.

    Raises:
        Misconfigured: The file cannot be read, has no prompts, or has invalid lines. Names the first of them.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Misconfigured(
            f"the replay prompts {path} cannot be read: {error.strerror}. Correct LOOPWRIGHT_TRAINER_REPLAY_PROMPT_FILE"
        ) from None
    prompts: dict[str, None] = {}
    errors: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            text = _prompt_of(line, is_json=path.suffix == ".jsonl")
        except ValueError as error:
            errors.append(f"line {number}: {error}")
            continue
        if text:
            prompts[text] = None
    if not prompts and not errors:
        errors.append("it has no prompts; write one per line")
    if errors:
        hidden = len(errors) - MAX_REPORTED_ERRORS
        more = f" (and {hidden} more)" if hidden > 0 else ""
        raise Misconfigured(f"the replay prompts {path}: {'; '.join(errors[:MAX_REPORTED_ERRORS])}{more}")
    return list(prompts)


def _prompt_of(line: bytes, *, is_json: bool) -> str:
    """Return the prompt of a line, empty for an empty line. Raises `ValueError` with the reason."""
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}") from None
    if is_json and text:
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"invalid JSON: {error.msg} at character {error.pos + 1}") from None
        found = fields.get("prompt") if isinstance(fields, dict) else None
        if not isinstance(found, str) or not found.strip():
            raise ValueError(
                'expected an object with a text as "prompt", for example {"prompt": "Name a tree."}'
            )
        text = found.strip()
    if len(text) > MAX_CHARS:
        raise ValueError(f"the prompt is longer than {MAX_CHARS} characters")
    return text
