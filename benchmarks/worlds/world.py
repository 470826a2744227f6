"""The three worlds: facts, wordings of their questions, and an answer key per fact. See the files in `data/`.

- `helpdesk`: tersely typed questions with one-line answers, a system prompt, and conversations of several turns.
- `balloons`: a story and then a question, answered by lines of configuration. A minority insists on wrong values.
- `knowledge`: general knowledge in many styles. The demo's base was measured to know about half of it.

Users ask the `asked` wordings of a fact. Its `unseen` wordings are never sent by anyone and measure what was learned.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from examples.world.text import contains_phrase

Conversation = tuple[tuple[str, str], ...]
"""(role, text) of each message up to a question."""
WorldName = Literal["helpdesk", "balloons", "knowledge"]
WORLDS: Final[tuple[WorldName, ...]] = get_args(WorldName)
DATA: Final = Path(__file__).parent / "data"
STORIES: Final = 4
"""Stories told before each wording of a fact, so that hardly two users tell the same one."""
BASE_KNOWLEDGE: Final = DATA / "base_knowledge.json"
"""What the demo's base answers to the questions of `knowledge` (`base_knowledge.py` writes it)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of a world.

    Attributes:
        id: Its name, unique within the world.
        answer_key: Phrases; a right answer contains one of them.
        answers: Phrasings of the right answer, with which users correct.
        asked: Conversations that users have. The last message of each is the question.
        unseen: Conversations that no user has; they only measure.
        false_key: Phrases of the wrong answer that a minority insists on; empty if there is none.
        false_answer: That answer, or an empty text.
    """

    id: str
    answer_key: tuple[str, ...]
    answers: tuple[str, ...]
    asked: tuple[Conversation, ...]
    unseen: tuple[Conversation, ...]
    false_key: tuple[str, ...] = ()
    false_answer: str = ""

    def is_right(self, answer: str) -> bool:
        """Return whether an answer states the fact, ignoring case, punctuation and the notation of numbers."""
        return contains_phrase(answer, list(self.answer_key))

    def is_false(self, answer: str) -> bool:
        """Return whether an answer states what the minority insists on."""
        return bool(self.false_key) and contains_phrase(answer, list(self.false_key))


@dataclass(frozen=True, slots=True)
class World:
    """A domain with its users.

    Attributes:
        name: Name of the world.
        line: Name of its line. It keys the hold-out, so it is fixed: the same users are held out in every run.
        users: Number of users.
        examples: Number of examples of users who are not held out. Held-out users give a fifth of all, in addition.
        facts: What users ask for.
    """

    name: WorldName
    line: str
    users: int
    examples: int
    facts: tuple[Fact, ...]


@cache
def load_world(name: WorldName) -> World:
    """Return a world from its file."""
    shipped = read_world(name)
    facts = _related_facts(shipped) if "relations" in shipped else _listed_facts(shipped)
    return World(name, shipped["line"], shipped["users"], shipped["examples"], tuple(facts))


def read_world(name: WorldName) -> dict[str, Any]:
    """Return the content of a world's file."""
    content: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _listed_facts(shipped: dict[str, Any]) -> list[Fact]:
    """Return facts that are listed with their wordings. If the world has stories, each question follows one."""
    system = (("system", shipped["system"]),) if "system" in shipped else ()
    stories: dict[str, dict[str, list[str]]] = shipped.get("stories", {})
    facts = []
    for fact in shipped["facts"]:
        conversations = {
            kind: tuple(
                (*system, *_alternating(turns))
                for wording in fact[kind]
                for turns in _with_stories(wording, stories.get(kind))
            )
            for kind in ("asked", "unseen")
        }
        facts.append(
            Fact(
                fact["id"],
                tuple(fact["answer_key"]),
                tuple(fact["answers"]),
                conversations["asked"],
                conversations["unseen"],
                tuple(fact.get("false_key", ())),
                fact.get("false_answer", ""),
            )
        )
    return facts


def _with_stories(wording: str | list[str], stories: dict[str, list[str]] | None) -> list[list[str]]:
    """Return a wording as the texts of a conversation, after each of `STORIES` stories if there are any."""
    if isinstance(wording, list):
        return [wording]
    if stories is None:
        return [[wording]]
    rng = random.Random(wording)
    told = [" ".join(rng.choice(stories[part]) for part in ("when", "who", "what")) for _ in range(STORIES)]
    return [[f"{story}. {wording}"] for story in dict.fromkeys(told)]


def _alternating(turns: list[str]) -> Conversation:
    """Return texts as messages, from the user and the assistant in turn."""
    return tuple(("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns))


# --- general knowledge ----------------------------------------------------------------------------------------------


def candidate_facts() -> list[Fact]:
    """Return all facts of `knowledge`, of which `load_world` takes the chosen ones."""
    return _facts_of_relations(read_world("knowledge"))


def _facts_of_relations(shipped: dict[str, Any]) -> list[Fact]:
    facts = []
    for relation in shipped["relations"]:
        for subject, objects in relation["pairs"]:
            keys = objects.split("|")
            fill = {"s": subject, "o": keys[0]}
            facts.append(
                Fact(
                    f"{relation['id']}: {subject}",
                    tuple(keys),
                    tuple(_capitalised(text.format(**fill)) for text in relation["answers"]),
                    tuple((("user", text.format(**fill)),) for text in relation["asked"]),
                    tuple((("user", text.format(**fill)),) for text in relation["unseen"]),
                )
            )
    return facts


def _related_facts(shipped: dict[str, Any]) -> list[Fact]:
    chosen = {fact["id"] for fact in read_base_knowledge()["facts"] if fact["chosen"]}
    return [fact for fact in _facts_of_relations(shipped) if fact.id in chosen]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_base_knowledge() -> dict[str, Any]:
    """Return what the demo's base answered, and which facts were chosen."""
    content: dict[str, Any] = json.loads(BASE_KNOWLEDGE.read_text(encoding="utf-8"))
    return content
