"""The operator's own golden set: questions with what an answer must and must not say. A question that stable answers
as it should and the candidate does not fails the gate.

A JSONL file, one question a line:

    {"question": "Who founded Acme?", "must_contain": ["Ida Voss"], "must_not_contain": ["John Doe"]}
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hours?"}],
     "reference": "We are open from 9 to 5.", "name": "hours"}

- `must_contain`: each phrase stands in the answer, as whole words, numbers in either writing. A list in the list means
  any of them. `must_not_contain`: none does.
- `reference`: the answer's score beside it (`scorers.score`, as for a correction) is at least `ALIKE`.
- `name`: shown in reports; `line 3` where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from services.trainer.core.chat import Messages
from services.trainer.gate.scorers import keys_of, score, states
from shared.errors import Misconfigured

ALIKE = 0.5
MOST = 1000
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Spoken(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Phrase


class GoldenLine(BaseModel):
    """A line of the file, as the module says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=80)] = ""
    question: Phrase | None = None
    messages: tuple[Spoken, ...] | None = None
    must_contain: tuple[Phrase | tuple[Phrase, ...], ...] = ()
    must_not_contain: tuple[Phrase, ...] = ()
    reference: Phrase | None = None

    @model_validator(mode="after")
    def _is_a_question_with_an_answer(self) -> GoldenLine:
        if (self.question is None) == (self.messages is None):
            raise ValueError("say which: question, or messages")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("the last of messages must be the user's")
        if not (self.must_contain or self.must_not_contain or self.reference):
            raise ValueError("nothing says what is right: give must_contain, must_not_contain or reference")
        return self


@dataclass(frozen=True, slots=True)
class Golden:
    """One question of the set."""

    name: str
    messages: Messages
    line: GoldenLine

    @property
    def question(self) -> str:
        return " ".join(content for role, content in self.messages if role == "user")

    def faults(self, answer: str) -> list[str]:
        """What is wrong with an answer, in words; nothing for one that passes."""
        found = []
        for wanted in self.line.must_contain:
            phrases = [wanted] if isinstance(wanted, str) else list(wanted)
            if not states(answer, phrases):
                found.append(f"does not say {' or '.join(map(repr, phrases))}")
        found += [f"says {phrase!r}" for phrase in self.line.must_not_contain if states(answer, [phrase])]
        reference = self.line.reference
        if reference is not None:
            reached = score(answer, reference, keys_of(reference, self.question))
            if reached < ALIKE:
                found.append(f"is unlike its reference: {reached:.2f}, wanted {ALIKE}")
        return found


def read(path: Path) -> list[Golden]:
    """Raises `Misconfigured`, naming the file and every line that is at fault (the first ten)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the golden set {path} cannot be read: {error}") from None
    found: list[Golden] = []
    faults: list[str] = []
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                found.append(_golden(text, number))
            except ValueError as error:
                faults.append(f"line {number}: {_told(error)}")
    names = [one.name for one in found]
    faults += [
        f"the name {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if len(found) > MOST:
        faults.append(f"{len(found)} questions: at most {MOST}, or every run takes long")
    if not found and not faults:
        faults.append("no question in it")
    if faults:
        more = f" (and {len(faults) - 10} more)" if len(faults) > 10 else ""
        raise Misconfigured(f"the golden set {path}: {'; '.join(faults[:10])}{more}")
    return found


def _golden(text: str, number: int) -> Golden:
    """Raises `ValueError`."""
    line = GoldenLine.model_validate(json.loads(text))
    messages: Sequence[tuple[str, str]] = (
        [("user", line.question)]
        if line.question is not None
        else [(turn.role, turn.content) for turn in line.messages or ()]
    )
    return Golden(line.name or f"line {number}", tuple(messages), line)


def _told(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    return str(error)
