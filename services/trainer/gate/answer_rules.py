"""Rules that decide without a model whether an answer is right: the checks of the shipped question sets.

Each rule is a Pydantic model with a `holds` method, and one line of JSON in a set:

    {"rule": "contains", "any": ["Paris"]}
    {"rule": "words", "at_least": 1, "at_most": 10}

Answers are text of a model, so they are only read: code is parsed with `ast` and never run, and values are read with
`ast.literal_eval`. No answer makes a rule raise. Pure.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from services.trainer.dataset.languages import LATIN
from services.trainer.dataset.words import fold
from services.trainer.gate.scorers import contains_phrase

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]

# --- parts of an answer -----------------------------------------------------------------------------------------

_UNSPACED: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff\u0e00-\u0e7f]")
"""Scripts without spaces between words, and Korean, whose particles are written together with the word."""
_WORD: Final = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_SENTENCE: Final = re.compile(r"[^.!?。！？]*[^\W_][^.!?。！？]*[.!?。！？]*")
_BULLET: Final = re.compile(r"^\s*[-*•]\s+\S")
_NUMBERED: Final = re.compile(r"^\s*\d{1,2}[.)]\s+\S")
_FENCE: Final = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_QUOTED: Final = re.compile(r"`([^`\n]+)`")
_LITERALS: Final = (
    re.compile(r"[\[({][^\n]*[\])}]"),
    re.compile(r"'[^'\n]*'|\"[^\"\n]*\""),
    re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)"),
    re.compile(r"\b(?:True|False|None)\b"),
)
_UNREADABLE: Final = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
"""What `ast` and `json` raise for text that they cannot parse, however deeply it is nested."""
MAX_CODE_LINES: Final = 60


def has_key(answer: str, key: str) -> bool:
    """Return whether an answer contains a key: as whole words, whatever the case and the accents.

    A key that ends in `*` may be followed by an ending, as words of many languages are. A key in a script without
    spaces may be anywhere.
    """
    if _UNSPACED.search(key):
        return fold(key.rstrip("*")) in fold(answer)
    if key.endswith("*"):
        return re.search(rf"(?<!\w){re.escape(fold(key[:-1]))}", fold(answer)) is not None
    return contains_phrase(answer, [key])


def word_count(answer: str) -> int:
    """Return the number of words, as people count them: a number or a compound with hyphens is one."""
    return len(_WORD.findall(answer))


def content_lines(answer: str) -> list[str]:
    """Return the lines that are not empty, without surrounding space."""
    return [line.strip() for line in answer.splitlines() if line.strip()]


def code_texts(answer: str) -> Iterator[str]:
    """Yield what may be code in an answer: fenced blocks, the whole answer, quoted parts, single lines."""
    yield from (found[1] for found in _FENCE.finditer(answer))
    yield answer.strip()
    start = re.search(r"^(?:def|class|import|from) ", answer, re.MULTILINE)
    if start:
        yield answer[start.start() :]
    yield from (found[1].strip() for found in _QUOTED.finditer(answer))
    yield from content_lines(answer)


def parse_code(text: str) -> ast.Module | None:
    """Return the syntax tree of Python code, or of its longest beginning that is code; None if there is none.

    The head of a block, such as `for x in items:`, may lack its body.
    """
    lines = text.splitlines()[:MAX_CODE_LINES]
    for end in range(len(lines), 0, -1):
        body = " pass" if lines[end - 1].rstrip().endswith(":") else ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as an invalid escape
                return ast.parse("\n".join(lines[:end]) + body)
        except _UNREADABLE:
            continue
    return None


@lru_cache(maxsize=4096)
def code_modules(answer: str) -> tuple[ast.Module, ...]:
    """Return the syntax trees of all that may be code in an answer."""
    modules = (parse_code(text) for text in dict.fromkeys(code_texts(answer)))
    return tuple(module for module in modules if module is not None)


def literal_values(answer: str) -> Iterator[Any]:
    """Yield the values of Python literals: those that stand for themselves, and the last one of each kind in a line."""
    for text in code_texts(answer):
        within = [found[-1] for pattern in _LITERALS if (found := pattern.findall(text))]
        for part in (text.strip(), *within):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield ast.literal_eval(part)
            except _UNREADABLE:
                continue


def json_values(answer: str) -> Iterator[Any]:
    """Yield the JSON values that an answer consists of: the whole answer, or a fenced block in it."""
    for text in (answer, *(found[1] for found in _FENCE.finditer(answer))):
        try:
            yield json.loads(text)
        except _UNREADABLE:
            continue


# --- rules ------------------------------------------------------------------------------------------------------


class AnswerRule(BaseModel, ABC):
    """A check of one answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def holds(self, answer: str) -> bool:
        """Return whether the answer passes."""


class CountRule(AnswerRule, ABC):
    """A rule about how many of something an answer has."""

    at_least: Count = 0
    at_most: Count | None = None

    @model_validator(mode="after")
    def _check_range(self) -> CountRule:
        if self.at_most is None and self.at_least == 0:
            raise ValueError("a range without bounds checks nothing: give at_least or at_most")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        return self

    def holds(self, answer: str) -> bool:
        """Return whether the number is in the range. An empty answer never passes."""
        found = self.count(answer)
        return (
            bool(answer.strip())
            and self.at_least <= found
            and (self.at_most is None or found <= self.at_most)
        )

    @abstractmethod
    def count(self, answer: str) -> int:
        """Return the number."""


class Contains(AnswerRule):
    """The answer has one of the keys (`has_key`)."""

    rule: Literal["contains"]
    any: tuple[Text, ...] = Field(min_length=1)

    def holds(self, answer: str) -> bool:
        """Return whether one of the keys is in the answer."""
        return any(has_key(answer, key) for key in self.any)


class Excludes(AnswerRule):
    """The answer has none of the keys, and is not empty."""

    rule: Literal["excludes"]
    any: tuple[Text, ...] = Field(min_length=1)

    def holds(self, answer: str) -> bool:
        """Return whether none of the keys is in the answer."""
        return bool(answer.strip()) and not any(has_key(answer, key) for key in self.any)


class Words(CountRule):
    """The number of words."""

    rule: Literal["words"]

    def count(self, answer: str) -> int:
        """Return the number of words."""
        return word_count(answer)


class Sentences(CountRule):
    """The number of sentences. A line break ends one."""

    rule: Literal["sentences"]

    def count(self, answer: str) -> int:
        """Return the number of sentences."""
        return sum(len(_SENTENCE.findall(line)) for line in content_lines(answer))


class Lines(CountRule):
    """The number of lines that are not empty."""

    rule: Literal["lines"]

    def count(self, answer: str) -> int:
        """Return the number of lines."""
        return len(content_lines(answer))


class Bullets(CountRule):
    """The number of points of a list: lines that begin with a bullet, or with a number if `numbered`."""

    rule: Literal["bullets"]
    numbered: bool = False

    def count(self, answer: str) -> int:
        """Return the number of points."""
        pattern = _NUMBERED if self.numbered else _BULLET
        return sum(pattern.match(line) is not None for line in answer.splitlines())


class Items(CountRule):
    """The number of parts between separators, none of which is empty, in an answer of one line."""

    rule: Literal["items"]
    separator: Text = ","

    def count(self, answer: str) -> int:
        """Return the number of parts, or 0 if one is empty or the answer has several lines."""
        if len(content_lines(answer)) != 1:
            return 0
        parts = answer.strip().rstrip(".").split(self.separator)
        return len(parts) if all(part.strip() for part in parts) else 0


class Occurrences(CountRule):
    """How often a word occurs, whatever the case."""

    rule: Literal["occurrences"]
    word: Text

    def count(self, answer: str) -> int:
        """Return the number of occurrences as a whole word."""
        return len(re.findall(rf"(?<!\w){re.escape(fold(self.word))}(?!\w)", fold(answer)))


class Starts(AnswerRule):
    """The answer begins with a text, in this spelling."""

    rule: Literal["starts"]
    text: Text

    def holds(self, answer: str) -> bool:
        """Return whether the answer begins so and goes on."""
        return answer.strip().startswith(self.text) and len(answer.strip()) > len(self.text)


class Ends(AnswerRule):
    """The answer ends with a text, in this spelling."""

    rule: Literal["ends"]
    text: Text

    def holds(self, answer: str) -> bool:
        """Return whether the answer ends so and has more before."""
        return answer.strip().endswith(self.text) and len(answer.strip()) > len(self.text)


class NoLetter(AnswerRule):
    """The answer has words, and none of them contains a letter."""

    rule: Literal["no_letter"]
    letter: Annotated[str, Field(min_length=1, max_length=1)]

    def holds(self, answer: str) -> bool:
        """Return whether no word contains the letter."""
        return word_count(answer) > 0 and fold(self.letter) not in fold(answer)


class Case(AnswerRule):
    """All letters are capitals, or none is."""

    rule: Literal["case"]
    case: Literal["upper", "lower"]

    def holds(self, answer: str) -> bool:
        """Return whether all letters have this case."""
        return answer.isupper() if self.case == "upper" else answer.islower()


class Matches(AnswerRule):
    """The whole answer, without surrounding space, matches a regular expression."""

    rule: Literal["matches"]
    pattern: Text

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"invalid pattern: {error}") from None
        return value

    def holds(self, answer: str) -> bool:
        """Return whether the answer matches."""
        return re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None


class Json(AnswerRule):
    """The answer is a JSON object with exactly these keys, a list of this length, or this value."""

    rule: Literal["json"]
    keys: tuple[Text, ...] | None = None
    length: Count | None = None
    equals: Any = None

    @model_validator(mode="after")
    def _check_one(self) -> Json:
        if sum(wanted is not None for wanted in (self.keys, self.length, self.equals)) != 1:
            raise ValueError("give one of keys, length and equals")
        return self

    def holds(self, answer: str) -> bool:
        """Return whether a JSON value in the answer is as wanted."""
        return any(self._is_wanted(value) for value in json_values(answer))

    def _is_wanted(self, value: Any) -> bool:
        if self.keys is not None:
            return isinstance(value, dict) and set(value) == set(self.keys)
        if self.length is not None:
            return isinstance(value, list) and len(value) == self.length
        return bool(value == self.equals)


class InLanguage(AnswerRule):
    """The answer is in a language: by its script, or in the Latin script by its function words."""

    rule: Literal["language"]
    code: Text

    @field_validator("code")
    @classmethod
    def _check_code(cls, value: str) -> str:
        if value not in _SCRIPTS and value not in _LATIN_WORDS:
            raise ValueError(f"no word list for language {value!r}")
        return value

    def holds(self, answer: str) -> bool:
        """Return whether most letters are of the script, or the language has the most function words."""
        if self.code in _SCRIPTS:
            letters = [char for char in answer if char.isalpha()]
            wanted = re.compile(f"[{_SCRIPTS[self.code]}]")
            return bool(letters) and sum(bool(wanted.match(char)) for char in letters) > len(letters) / 2
        found = _folded_words(answer)
        hits = {code: sum(word in words for word in found) for code, words in _LATIN_WORDS.items()}
        return hits[self.code] > 0 and hits[self.code] == max(hits.values())


class Literally(AnswerRule):
    """The answer contains a Python literal with this value and type, such as the output of a program."""

    rule: Literal["literal"]
    value: Text

    @field_validator("value")
    @classmethod
    def _check_value(cls, value: str) -> str:
        ast.literal_eval(value)
        return value

    def holds(self, answer: str) -> bool:
        """Return whether one of the answer's literals is equal."""
        wanted = ast.literal_eval(self.value)
        return any(type(found) is type(wanted) and found == wanted for found in literal_values(answer))


class Function(AnswerRule):
    """The answer's code defines a function: with this name, number of parameters, and syntax.

    `uses` and `avoids` are names of syntax nodes (`For`, `Mod`, `Return`), of functions, methods and variables, or of
    the function itself for recursion. `a|b` means one of them.
    """

    rule: Literal["function"]
    name: Text
    parameters: Count
    uses: tuple[Text, ...] = ()
    avoids: tuple[Text, ...] = ()

    def holds(self, answer: str) -> bool:
        """Return whether some code in the answer defines such a function."""
        return any(
            isinstance(node, ast.FunctionDef) and self._is_wanted(node)
            for module in code_modules(answer)
            for node in ast.walk(module)
        )

    def _is_wanted(self, node: ast.FunctionDef) -> bool:
        arguments = node.args
        if node.name != self.name or len(arguments.posonlyargs) + len(arguments.args) != self.parameters:
            return False
        found = _syntax(node)
        return all(not found.isdisjoint(wanted.split("|")) for wanted in self.uses) and found.isdisjoint(
            one for names in self.avoids for one in names.split("|")
        )


class Code(AnswerRule):
    """The answer contains one of these statements or expressions, however it is spaced and quoted."""

    rule: Literal["code"]
    any: tuple[Text, ...] = Field(min_length=1)

    @field_validator("any")
    @classmethod
    def _check_code(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            _single_node(text)
        return value

    def holds(self, answer: str) -> bool:
        """Return whether the syntax tree of one of them is in the answer's code."""
        wanted = {_single_node(text) for text in self.any}
        return any(
            isinstance(node, ast.stmt | ast.expr) and _dump(node) in wanted
            for module in code_modules(answer)
            for node in ast.walk(module)
        )


Rule: TypeAlias = Annotated[
    Contains
    | Excludes
    | Words
    | Sentences
    | Lines
    | Bullets
    | Items
    | Occurrences
    | Starts
    | Ends
    | NoLetter
    | Case
    | Matches
    | Json
    | InLanguage
    | Literally
    | Function
    | Code,
    Field(discriminator="rule"),
]
RULES: Final[TypeAdapter[tuple[Rule, ...]]] = TypeAdapter(tuple[Rule, ...])
"""Parses the rules of one question; raises `pydantic.ValidationError`."""

_SCRIPTS: Final = {
    "ru": "\u0400-\u04ff",
    "uk": "\u0400-\u04ff",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "ar": "\u0600-\u06ff",
    "he": "\u0590-\u05ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
    "zh": "\u4e00-\u9fff",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7ff",
}


def _folded_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", fold(text)))


_LATIN_WORDS: Final = {language.code: _folded_words(language.function_words) for language in LATIN}


def _syntax(node: ast.AST) -> frozenset[str]:
    """Return the names of the node types in a function, and of what it calls and reads."""
    found: set[str] = set()
    for part in ast.walk(node):
        if part is not node:
            found.add(type(part).__name__)
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
    return frozenset(found)


@cache
def _single_node(text: str) -> str:
    """Return the syntax tree of a text's one statement or expression, as text. Raises `ValueError` if it has more."""
    (statement,) = ast.parse(text).body
    return _dump(statement.value if isinstance(statement, ast.Expr) else statement)


def _dump(node: ast.AST) -> str:
    try:
        return ast.dump(node)
    except RecursionError:
        return ""
