"""Chats with the model through the OpenAI client: users' visits, the exam, and background load during the swap."""

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

PARALLEL_CHATS = 32
"""The inference service answers parallel chats in one batch."""
ANSWER_TOKENS = 24
EXAM_USER = "examiner"
DRAIN_S = 60.0
"""Seconds to wait for the last chat of each background thread."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of the stack's public APIs."""

    chat: OpenAI
    loop: Loopwright
    line: str = "assistant"

    def ask(self, user: str, question: str) -> tuple[str, str, str]:
        """Ask one question; return the response id, the answer and the version."""
        completion = self.chat.chat.completions.create(
            model=self.line,
            messages=[{"role": "user", "content": question}],
            max_tokens=ANSWER_TOKENS,
            temperature=0,
            user=user,
        )
        return completion.id, completion.choices[0].message.content or "", completion.model


@contextmanager
def chat_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool for parallel chats. After an error it does not wait for them: they end with the services."""
    pool = ThreadPoolExecutor(PARALLEL_CHATS)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def run_visits(clients: Clients, visits: list[Visit], on_done: Callable[[], None]) -> Iterator[Reactions]:
    """Run each visit: ask, read the answer, give feedback. Call `on_done` after each."""

    def run_visit(numbered: tuple[int, Visit]) -> Reactions:
        number, visit = numbered
        response_id, answer, _ = clients.ask(visit.user, visit.question)
        reactions = react(clients.loop, visit, response_id, answer, random.Random(SEED * 1000 + number))
        on_done()
        return reactions

    with chat_pool() as pool:
        yield from pool.map(run_visit, enumerate(visits))


@dataclass(frozen=True, slots=True)
class ExamAnswer:
    """The model's answer to one held-out question."""

    question: str
    fact: Fact
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer states the fact."""
        return is_right(self.answer, self.fact)

    @property
    def poisoned(self) -> bool:
        """Whether the answer states the poisoners' claim."""
        return is_poisoned(self.answer, self.fact)


def run_exam(clients: Clients, world: World, on_done: Callable[[], None]) -> list[ExamAnswer]:
    """Ask each held-out question once. Call `on_done` after each."""

    def ask(item: tuple[str, Fact]) -> ExamAnswer:
        question, fact = item
        exam_answer = ExamAnswer(question, fact, clients.ask(EXAM_USER, question)[1])
        on_done()
        return exam_answer

    with chat_pool() as pool:
        return list(pool.map(ask, world.heldout()))


@dataclass(slots=True)
class BackgroundLoad:
    """Streamed chats that run through training and swap, none of which may fail or mix two versions.

    During training there is one chat every `pause_s` seconds, because both use the same processors. After `speed_up`
    there are `max_parallel` chats at a time without pauses.
    """

    clients: Clients
    questions: list[str]
    pause_s: float = 20.0
    max_parallel: int = 8
    requests: int = 0
    failed: int = 0
    mixed_version: int = 0
    errors: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """Versions that answered, in the order of their first answers."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the slow chats."""
        self._start_thread(0, self.pause_s)

    def speed_up(self) -> None:
        """Start the parallel chats, shortly before the swap."""
        for number in range(1, self.max_parallel):
            self._start_thread(number, 0.0)

    def wait_for(self, requests: int) -> None:
        """Wait until this many requests have been made."""
        while self.requests < requests and any(thread.is_alive() for thread in self._threads):
            self._threads[-1].join(0.2)

    def stop(self) -> None:
        """Stop after the running chats."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DRAIN_S)

    def _start_thread(self, number: int, pause_s: float) -> None:
        # Each thread starts at another question.
        questions = self.questions[number * 7 % len(self.questions) :] + self.questions
        thread = threading.Thread(
            target=self._run, args=(questions, pause_s), name=f"load-{number}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _run(self, questions: list[str], pause_s: float) -> None:
        for question in itertools.cycle(questions):
            if self._stop.wait(pause_s):
                return
            self._chat(question)

    def _chat(self, question: str) -> None:
        try:
            stream = self.clients.chat.chat.completions.create(
                model=self.clients.line,
                messages=[{"role": "user", "content": question}],
                max_tokens=12,
                temperature=0,
                stream=True,
            )
            versions = {chunk.model for chunk in stream}
        except OpenAIError as error:
            with self._lock:
                self.requests += 1
                self.failed += 1
                self.errors.append(str(error)[:200])
            return
        with self._lock:
            self.requests += 1
            self.mixed_version += len(versions) != 1
            self.versions += sorted(versions - set(self.versions))
