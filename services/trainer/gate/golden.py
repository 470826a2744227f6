"""The operator's golden set: questions with what an answer must and must not contain.

The gate fails a candidate if stable answers a golden question correctly and the candidate does not. The set is a
JSONL file with one question per line:

    {"question": "Who founded Acme?", "must_contain": ["Ida Voss"], "must_not_contain": ["John Doe"]}
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hours?"}],
     "reference": "We are open from 9 to 5.", "name": "hours"}

- `must_contain`: phrases that the answer must contain as whole words, with numbers in words or digits. A list inside
  the list means any one of its phrases.
- `must_not_contain`: phrases that the answer must not contain.
- `reference`: a reference answer. The score against it (`scorers.score`, as for a correction) must reach
  `MIN_REFERENCE_SCORE`.
- `name`: shown in reports; `line 3` if it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from services.trainer.core.chat import Messages
from services.trainer.gate.scorers import contains_phrase, required_keys, score
from shared.chat_format import ChatFormat, TemplateRefused
from shared.errors import Misconfigured

MIN_REFERENCE_SCORE = 0.5
MAX_QUESTIONS = 1000
MAX_REPORTED_ERRORS = 10
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class GoldenMessage(BaseModel):
    """One message of a golden question's conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Phrase


class GoldenLine(BaseModel):
    """A line of the file, as described in the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=80)] = ""
    question: Phrase | None = None
    messages: tuple[GoldenMessage, ...] | None = None
    must_contain: tuple[Phrase | tuple[Phrase, ...], ...] = ()
    must_not_contain: tuple[Phrase, ...] = ()
    reference: Phrase | None = None

    @model_validator(mode="after")
    def _has_a_question_and_a_check(self) -> GoldenLine:
        if (self.question is None) == (self.messages is None):
            raise ValueError("give either question or messages")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("the last message must have the role user")
        if not (self.must_contain or self.must_not_contain or self.reference):
            raise ValueError("no check for the answer: give must_contain, must_not_contain or reference")
        return self


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """One question of the golden set."""

    name: str
    messages: Messages
    line: GoldenLine

    @property
    def question(self) -> str:
        """Everything that the user asks in the conversation."""
        return " ".join(content for role, content in self.messages if role == "user")

    def faults(self, answer: str) -> list[str]:
        """Return the faults of an answer; an empty list if it passes."""
        faults = []
        for required in self.line.must_contain:
            phrases = [required] if isinstance(required, str) else list(required)
            if not contains_phrase(answer, phrases):
                faults.append(f"does not contain {' or '.join(map(repr, phrases))}")
        faults += [
            f"contains {phrase!r}"
            for phrase in self.line.must_not_contain
            if contains_phrase(answer, [phrase])
        ]
        reference = self.line.reference
        if reference is not None:
            reached = score(answer, reference, required_keys(reference, self.question))
            if reached < MIN_REFERENCE_SCORE:
                faults.append(f"is unlike its reference: score {reached:.2f}, minimum {MIN_REFERENCE_SCORE}")
        return faults


def read_golden_set(path: Path) -> list[GoldenQuestion]:
    """Read a golden set.

    Raises:
        Misconfigured: The file cannot be read, or a line is invalid. Names the file and the first
            `MAX_REPORTED_ERRORS` invalid lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the golden set {path} cannot be read: {error}") from None
    questions: list[GoldenQuestion] = []
    errors: list[str] = []
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                questions.append(_parse(text, number))
            except ValueError as error:
                errors.append(f"line {number}: {_message(error)}")
    names = [question.name for question in questions]
    repeated = sorted({name for name in names if names.count(name) > 1})
    errors += [f"the name {name!r} is used more than once" for name in repeated]
    if len(questions) > MAX_QUESTIONS:
        errors.append(
            f"{len(questions)} questions: at most {MAX_QUESTIONS} are allowed, or every run takes long"
        )
    if not questions and not errors:
        errors.append("it contains no question")
    if errors:
        hidden = len(errors) - MAX_REPORTED_ERRORS
        more = f" (and {hidden} more)" if hidden > 0 else ""
        raise Misconfigured(f"the golden set {path}: {'; '.join(errors[:MAX_REPORTED_ERRORS])}{more}")
    return questions


def require_rendered(path: Path, questions: Sequence[GoldenQuestion], chat: ChatFormat) -> None:
    """Require that the base's chat template renders every question. Raises `Misconfigured`."""
    for question in questions:
        try:
            chat.prompt_ids(question.messages)
        except TemplateRefused as refused:
            raise Misconfigured(f"the golden set {path}: {question.name}: {refused}") from None


def _parse(text: str, number: int) -> GoldenQuestion:
    line = GoldenLine.model_validate(json.loads(text))
    messages: Sequence[tuple[str, str]] = (
        [("user", line.question)]
        if line.question is not None
        else [(message.role, message.content) for message in line.messages or ()]
    )
    return GoldenQuestion(line.name or f"line {number}", tuple(messages), line)


def _message(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        return f"{field}: {message}" if field else message
    return str(error)
