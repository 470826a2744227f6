"""Chats with the model through the OpenAI client: the users' visits, the exam, the load that runs through the swap."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from openai import OpenAI, OpenAIError

from examples.demo.user_behaviour import Reactions, react
from examples.demo.users import SEED, Visit
from examples.world import Fact, World, is_poisoned, is_right
from loopwright import Loopwright

AT_ONCE = 32
"""Chats in parallel; the inference service answers them in one batch."""
ANSWER_TOKENS = 24
EXAM_USER = "examiner"


@dataclass(frozen=True, slots=True)
class Doors:
    """The public addresses, as clients."""

    chat: OpenAI
    loop: Loopwright
    line: str = "assistant"

    def ask(self, user: str, question: str) -> tuple[str, str, str]:
        """(response_id, answer, version)"""
        made = self.chat.chat.completions.create(
            model=self.line,
            messages=[{"role": "user", "content": question}],
            max_tokens=ANSWER_TOKENS,
            temperature=0,
            user=user,
        )
        return made.id, made.choices[0].message.content or "", made.model


@contextmanager
def at_once() -> Iterator[ThreadPoolExecutor]:
    """So many chats in parallel. Where the demo is interrupted it does not wait for those under way: they end with the
    services."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def visit_all(doors: Doors, visits: list[Visit], done: Callable[[], None]) -> Iterator[Reactions]:
    """Every visit: ask, read, react. `done` is called after each."""

    def visit(numbered: tuple[int, Visit]) -> Reactions:
        number, one = numbered
        response_id, answer, _ = doors.ask(one.user, one.question)
        said = react(doors.loop, one, response_id, answer, random.Random(SEED * 1000 + number))
        done()
        return said

    with at_once() as pool:
        yield from pool.map(visit, enumerate(visits))


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out question and what the model said."""

    question: str
    fact: Fact
    answer: str

    @property
    def right(self) -> bool:
        return is_right(self.answer, self.fact)

    @property
    def poisoned(self) -> bool:
        return is_poisoned(self.answer, self.fact)


def examine(doors: Doors, world: World, done: Callable[[], None]) -> list[Answered]:
    """Asks every held-out question once."""

    def ask(item: tuple[str, Fact]) -> Answered:
        question, fact = item
        answered = Answered(question, fact, doors.ask(EXAM_USER, question)[1])
        done()
        return answered

    with at_once() as pool:
        return list(pool.map(ask, world.heldout()))


@dataclass(slots=True)
class Load:
    """Streamed chats from `start` to `stop`: a swap must not fail one, nor mix two versions. Now and then one while a
    version trains on the same processors; many at once, without a pause, from `hurry` on."""

    doors: Doors
    questions: list[str]
    pause_s: float = 20.0
    at_once: int = 8
    requests: int = 0
    failed: int = 0
    mixed_version: int = 0
    errors: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """In the order in which they first answered."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self._add(0, self.pause_s)

    def hurry(self) -> None:
        """A version is about to be taken over."""
        for place in range(1, self.at_once):
            self._add(place, 0.0)

    def reach(self, requests: int) -> None:
        """Waits until so many were made."""
        while self.requests < requests and any(thread.is_alive() for thread in self._threads):
            self._threads[-1].join(0.2)

    def stop(self) -> None:
        """Lets the chats under way end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _add(self, place: int, pause_s: float) -> None:
        # Each begins elsewhere in the questions.
        asked = self.questions[place * 7 % len(self.questions) :] + self.questions
        thread = threading.Thread(target=self._run, args=(asked, pause_s), name=f"load-{place}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, questions: list[str], pause_s: float) -> None:
        for question in itertools.cycle(questions):
            if self._stop.wait(pause_s):
                return
            self._one(question)

    def _one(self, question: str) -> None:
        try:
            stream = self.doors.chat.chat.completions.create(
                model=self.doors.line,
                messages=[{"role": "user", "content": question}],
                max_tokens=12,
                temperature=0,
                stream=True,
            )
            seen = {chunk.model for chunk in stream}
        except OpenAIError as error:
            with self._lock:
                self.requests += 1
                self.failed += 1
                self.errors.append(str(error)[:200])
            return
        with self._lock:
            self.requests += 1
            self.mixed_version += len(seen) != 1
            self.versions += sorted(seen - set(self.versions))
