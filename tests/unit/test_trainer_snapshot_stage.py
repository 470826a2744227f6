"""The stage of a run that takes its snapshot: what it reads and counts, and how often."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.base.tokenization import RowTokens, TokenCounts
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.data_card import ExamplesRead
from services.trainer.dataset.filters import Row
from shared.chat_format import ChatFormat, Messages, TemplateRefused
from shared.events import Batch, ExampleRevision, Message, SignalKind
from tests.chat_bases import family_tokenizer
from tests.trainer_factories import LINE, batch, revision, row

LONGEST = 60
FAMILIES = ("smollm2", "gemma", "llama3")
PIECES = (
    "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|eot_id|>", "<|im_", "end|>", "Ada", "👩‍💻", "图书馆", "é",
    "x |> f()", " ", "\n", "\u200d", "9", "long text " * 40,
)  # fmt: skip


def mixed_revisions(dice: random.Random, responses: int) -> list[ExampleRevision]:
    """Return revisions of responses of all kinds of feedback, some longer than a run allows or with a system prompt."""
    found = []
    for number in range(responses):
        user = Message(role="user", content=f"What is the colour of kettle {dice.randrange(9)}?")
        system = [Message(role="system", content="Be brief.")] * dice.randrange(2)
        kinds: list[tuple[SignalKind, Any]] = [
            ("correction", "It is red. " * dice.choice([1, 1, 40])),
            ("thumbs", "up"),
            ("rating", 1),
        ]
        kind, value = dice.choice(kinds)
        found.append(
            revision(f"r{number}", "", value, f"u{dice.randrange(20)}", kind=kind, messages=(*system, user))
        )
    return found


def batches(dice: random.Random, revisions: list[ExampleRevision]) -> Iterator[Batch]:
    """Yield batches of several partitions with these revisions, and with later ones and retractions of some."""
    for number in range(1, 7):
        contents = revisions[number - 1 :: 6]
        for old in dice.sample([one for one in revisions if one not in contents], len(revisions) // 6):
            changes: dict[str, Any] = {"revision": number + 1}
            if dice.random() < 0.3:
                changes |= {"op": "retract", "signals": ()}
            contents = [*contents, old.model_copy(update=changes)]
        yield batch(contents, number, partition=number % 2)


def newest(stored: list[Batch], upto: dict[str, int]) -> list[ExampleRevision]:
    """Return the current examples, computed from all revisions at once."""
    by_response: dict[str, ExampleRevision] = {}
    for one in stored:
        if one.number <= upto.get(str(one.partition), 0):
            for example in one.examples:
                best = by_response.get(example.response_id)
                if best is None or example.revision > best.revision:
                    by_response[example.response_id] = example
    return [by_response[name] for name in sorted(by_response) if by_response[name].op == "upsert"]


@pytest.mark.parametrize("seed", range(5))
def test_streamed_examples_are_the_newest_revisions(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    stored = list(batches(dice, mixed_revisions(dice, 60)))
    upto = {"0": dice.choice([2, 6]), "1": dice.choice([1, 5])}
    with closing(open_database(tmp_path)) as db:
        with db:
            for one in dice.sample(stored, len(stored)):
                batch_table.store_batch(db, one)
        read = ExamplesRead()
        found = list(read.counted(batch_table.current_examples(db, upto)))
    assert [one.revision for one in found] == newest(stored, upto)
    assert read.examples == len(found)
    assert read.signals == Counter(signal.kind for one in found for signal in one.revision.signals)


class CountingFormat:
    """A chat format that counts how often it tokenizes each text."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self.prompts: Counter[tuple[tuple[str, str], ...]] = Counter()
        self.answers: Counter[str] = Counter()

    def prompt_ids(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        self.prompts[messages] += 1
        return self.chat.prompt_ids(messages)

    def answer_ids(self, text: str) -> list[int]:
        self.answers[text] += 1
        return self.chat.answer_ids(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_is_tokenized_once_in_a_snapshot(family: str, tiny_model: Path) -> None:
    chat = ChatFormat(family_tokenizer(tiny_model, family))
    dice = random.Random(1)
    examples = [Example(one, 0, 1, 0) for one in mixed_revisions(dice, 200)]
    counting = CountingFormat(chat)
    counts = TokenCounts(counting, LONGEST)  # type: ignore[arg-type]
    taken = snapshot.build(
        LINE,
        examples,
        {},
        unfit=counts.why_unfit,
        size=lambda one: counts.of(one).all,
        token_budget=1500,
    )
    assert taken.train
    assert set(counting.prompts.values()) == set(counting.answers.values()) == {1}
    assert len(counting.answers) < len(taken.train)
    for one in (*taken.train, *taken.heldout):
        assert counts.of(one.row).prompt == len(chat.prompt_ids(one.row.messages))
        assert counts.of(one.row).answers == (len(chat.answer_ids(one.row.answer)),)


class OneByOne:
    """Counts of rows, each tokenized on its own whenever it is counted."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat

    def why_unfit(self, one: Row) -> str | None:
        return expected_reason(self.chat, one.messages, one.answer)

    def of(self, one: Row) -> RowTokens:
        return RowTokens(len(self.chat.prompt_ids(one.messages)), (len(self.chat.answer_ids(one.answer)),))


@cache
def chat_of(family: str, tiny_model: Path) -> ChatFormat:
    return ChatFormat(family_tokenizer(tiny_model, family))


texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
roles = st.sampled_from(["user", "user", "user", "assistant", "system"])
conversations = st.lists(st.tuples(roles, texts), max_size=2).map(lambda turns: [*turns, ("user", "Who?")])


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_snapshot_is_that_of_rows_tokenized_one_by_one(
    family: str, tiny_model: Path, data: st.DataObject
) -> None:
    some = data.draw(st.lists(conversations, min_size=1, max_size=4))
    answers = data.draw(st.lists(texts.filter(str.strip), min_size=1, max_size=4))
    given_ = data.draw(st.lists(st.tuples(st.sampled_from(some), st.sampled_from(answers)), max_size=12))
    examples = [
        Example(
            revision(
                f"r{number:02}",
                "",
                answer,
                f"u{number}",
                messages=tuple(Message(role=role, content=text) for role, text in turns),  # type: ignore[arg-type]
            ),
            0,
            1,
            0,
        )
        for number, (turns, answer) in enumerate(given_)
    ]
    chat = chat_of(family, tiny_model)
    taken = [
        snapshot.build(
            LINE,
            examples,
            {},
            unfit=counts.why_unfit,
            size=lambda one, counts=counts: counts.of(one).all,  # type: ignore[misc]
            token_budget=250,
        )
        for counts in (TokenCounts(chat, LONGEST), OneByOne(chat))
    ]
    assert taken[0] == taken[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_row_is_unfit_if_it_is_refused_or_too_long(family: str, tiny_model: Path) -> None:
    chat = ChatFormat(family_tokenizer(tiny_model, family))
    counts = TokenCounts(chat, LONGEST)
    reasons: set[str | None] = set()
    for number, one in enumerate(mixed_revisions(random.Random(2), 100)):
        messages = tuple((message.role, message.content) for message in one.messages)
        rated = row("", str(one.signals[0].value), name=f"r{number}")
        for _ in range(2):
            reason = counts.why_unfit(with_messages(rated, messages))
            reasons.add(reason and reason.partition(":")[0])
            assert reason == expected_reason(chat, messages, rated.answer)
    assert reasons == {None, "tokens"} | ({"chat template"} if family == "gemma" else set())


def expected_reason(chat: ChatFormat, messages: Messages, answer: str) -> str | None:
    try:
        length = len(chat.prompt_ids(messages)) + len(chat.answer_ids(answer))
    except TemplateRefused as refused:
        return f"chat template: {refused.reason}"
    return "tokens: longer than the limit of a run" if length > LONGEST else None


def with_messages(one: Row, messages: tuple[tuple[str, str], ...]) -> Row:
    return replace(one, messages=messages)


def test_preference_counts_both_answers_with_its_prompt(tiny_model: Path) -> None:
    chat = ChatFormat(family_tokenizer(tiny_model, "smollm2"))
    preferred = Row("r1", 1, "e1", "u1", (("user", "Who?"),), "Nobody knows.", "Ada.", 0, objective="dpo")
    counts = TokenCounts(chat, 1000)
    assert counts.why_unfit(preferred) is None
    prompt, answers = (
        len(chat.prompt_ids(preferred.messages)),
        [len(chat.answer_ids(t)) for t in ("Ada.", "Nobody knows.")],
    )
    assert counts.of(preferred).answers == tuple(answers)
    assert counts.of(preferred).all == 2 * prompt + sum(answers)
    assert "tokens" in str(TokenCounts(chat, prompt + max(answers) - 1).why_unfit(preferred))
