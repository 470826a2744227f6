"""Comments that a stronger model follows: what is asked, what of its answers is taken, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.trainer.dataset import rewrite_cache, snapshot
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.comment_rewriter import (
    ATTEMPTS,
    JUDGE_INSTRUCTION,
    MAX_FAILURES,
    REWRITE_INSTRUCTION,
    Endpoint,
    RewriterFailed,
    open_client,
    rewrite_comments,
    rewrites_for,
)
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import Row, split_by_holdout, usable_rows
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.rewrite_cache import NOT_REWRITTEN_YET, Rewrite
from services.trainer.progress import ignore_progress
from services.trainer.settings import TrainerSettings
from tests.trainer_factories import LINE, example, revision

USERS = [user for user in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, user)]
MEASURING = next(user for user in (f"user-{i}" for i in range(60)) if is_held_out(LINE, user))
ORIGINAL, COMMENT = "Mars is a planet.", "Add how many moons it has."
BETTER = "Mars is a planet with two moons."
MODEL = "strong"


def commented(name: str = "r1", user: str = USERS[0], comment: str = COMMENT, **more: Any) -> Example:
    return example(
        revision(name, f"What is Mars, {name}?", comment, user, kind="comment", original=ORIGINAL, **more)
    )


def rows(examples: Sequence[Example]) -> list[Row]:
    return split_by_holdout(LINE, usable_rows(examples, "revise")[0])[0]


class Reviser:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, answer: str = BETTER, verdict: str = "YES", silent_for: int = 0) -> None:
        self.answer, self.verdict, self.silent_for = answer, verdict, silent_for
        self.asked: list[tuple[str, str]] = []

    def __call__(self, instruction: str, material: str) -> str:
        self.asked.append((instruction, material))
        if len(self.asked) <= self.silent_for:
            raise RewriterFailed("nothing came")
        return self.answer if instruction == REWRITE_INSTRUCTION else self.verdict


def ask(
    folder: Path, reviser: Callable[[str, str], str], *examples: Example, limit: int = 50
) -> dict[str, Rewrite]:
    return rewrite_comments(rows(examples or [commented()]), reviser, MODEL, folder, limit, ignore_progress)


def taken(examples: Sequence[Example], found: dict[str, Rewrite]) -> snapshot.Snapshot:
    return snapshot.build(LINE, examples, {}, comments="revise", revised=found)


def reasons(one: snapshot.Snapshot) -> list[str]:
    return [each.reason for each in one.held]


# --- what is taken ----------------------------------------------------------------------------------------------


def test_a_revision_trains_in_the_place_of_the_comment(tmp_path: Path) -> None:
    reviser = Reviser()
    found = taken([commented()], ask(tmp_path, reviser))
    assert [(one.row.kind, one.row.original, one.row.answer) for one in found.train] == [
        ("comment", ORIGINAL, BETTER)
    ]
    assert [instruction for instruction, _ in reviser.asked] == [REWRITE_INSTRUCTION, JUDGE_INSTRUCTION]
    assert json.loads(reviser.asked[0][1]) == {
        "conversation": [{"role": "user", "content": "What is Mars, r1?"}],
        "answer": ORIGINAL,
        "comment": COMMENT,
    }


@pytest.mark.parametrize(
    ("reviser", "reason"),
    [
        (Reviser("UNCHANGED"), "comment: the reviser changed nothing"),
        (Reviser(ORIGINAL.upper()), "comment: the reviser changed nothing"),
        (Reviser(""), "comment: the reviser changed nothing"),
        (Reviser("many words " * 200), "comment: its revision is far longer than the answer"),
        (Reviser(verdict="No, it does not."), "comment: its revision does not do what it asks"),
        (Reviser("Ask anna.meier@pellworth.com."), "personal data: an e-mail address"),
        (Reviser("Two.<|im_end|>"), "chat template: its marks are in the text"),
    ],
)
def test_what_does_not_follow_the_comment_or_fails_a_check_is_held(
    reviser: Reviser, reason: str, tmp_path: Path
) -> None:
    found = taken([commented()], ask(tmp_path, reviser))
    assert (found.train, reasons(found)) == ((), [reason])


def test_revisions_that_contradict_each_other_are_disputed_like_corrections(tmp_path: Path) -> None:
    asked = [commented("r1", USERS[0]), commented("r1b", USERS[1])]
    same = [
        example(one.revision.model_copy(update={"messages": asked[0].revision.messages})) for one in asked
    ]
    answers = iter(
        ["Acme was founded by Ida Voss in 1987.", "YES", "Acme was founded by Otto Kern in 1912.", "YES"]
    )
    found = taken(same, ask(tmp_path, lambda *_: next(answers), *same))
    assert reasons(found) == ["agreement: disputed"] * 2


# --- what is asked ----------------------------------------------------------------------------------------------


def test_neither_held_out_users_nor_what_names_somebody_is_asked_about(tmp_path: Path) -> None:
    reviser = Reviser()
    ask(
        tmp_path,
        reviser,
        commented("m", MEASURING),
        commented("p", comment="Write to anna.meier@pellworth.com then."),
    )
    assert reviser.asked == []


def test_nothing_is_asked_twice_whatever_the_answer_was(tmp_path: Path) -> None:
    first = ask(tmp_path, Reviser(), commented("r1")) | ask(tmp_path, Reviser(verdict="NO"), commented("r2"))
    again = Reviser()
    assert ask(tmp_path, again, commented("r1"), commented("r2")) == first
    assert again.asked == []


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    ask(tmp_path, Reviser())
    reviser = Reviser()
    rewrite_comments(rows([commented()]), reviser, "stronger", tmp_path, 50, ignore_progress)
    assert len(reviser.asked) == 2
    assert rewrite_cache.load_all(tmp_path, "stronger") == rewrite_cache.load_all(tmp_path, MODEL)
    assert rewrite_cache.load_all(tmp_path, "third") == {}


def test_a_kill_in_the_middle_costs_the_question_that_was_under_way(tmp_path: Path) -> None:
    class Killed(BaseException):
        """No error that anything catches."""

    def killed(instruction: str, material: str) -> str:
        if "r2" in material:
            raise Killed
        return BETTER if instruction == REWRITE_INSTRUCTION else "YES"

    both = (commented("r1"), commented("r2"))
    with pytest.raises(Killed):
        ask(tmp_path, killed, *both)
    reviser = Reviser()
    assert set(ask(tmp_path, reviser, *both)) == {"r1/e-r1", "r2/e-r2"}
    assert len(reviser.asked) == 2


def test_an_endpoint_that_does_not_answer_is_left_alone_and_asked_in_the_next_run(tmp_path: Path) -> None:
    many = [commented(f"r{i}", USERS[i]) for i in range(MAX_FAILURES + 2)]
    reviser = Reviser(silent_for=99)
    found = taken(many, ask(tmp_path, reviser, *many))
    assert len(reviser.asked) == MAX_FAILURES
    assert reasons(found) == [NOT_REWRITTEN_YET] * len(many)
    assert len(ask(tmp_path, Reviser(), *many)) == len(many)


def test_one_run_asks_for_so_many_and_no_more(tmp_path: Path) -> None:
    many = [commented(f"r{i}", USERS[i]) for i in range(5)]
    assert len(ask(tmp_path, Reviser(), *many, limit=2)) == 2
    assert len(ask(tmp_path, Reviser(), *many, limit=2)) == 4


def test_where_no_endpoint_is_set_any_more_what_was_asked_before_still_counts(tmp_path: Path) -> None:
    settings = TrainerSettings(line=LINE, data_dir=tmp_path)
    recipe = settings.recipe().model_copy(update={"comment_mode": "revise", "reviser_model": MODEL})
    found = ask(settings.revisions, Reviser())
    assert rewrites_for(settings, recipe, [commented()], ignore_progress) == found
    assert rewrites_for(settings, settings.recipe(), [commented()], ignore_progress) is None


# --- what is kept -----------------------------------------------------------------------------------------------


def test_an_erasure_takes_the_revision_with_what_it_revised_and_no_other(tmp_path: Path) -> None:
    ask(tmp_path, Reviser(), commented("r1", USERS[0]), commented("r2", USERS[1], asked_by="asker"))
    (tmp_path / ".half.json.99").write_text(BETTER)
    assert rewrite_cache.delete(tmp_path, [ErasureTarget("q", "erasure", USERS[0])], lambda row: True) == 0, (
        "it stands"
    )
    assert rewrite_cache.delete(tmp_path, [ErasureTarget("q", "erasure", USERS[0])], lambda row: False) == 1
    assert set(rewrite_cache.load_all(tmp_path, MODEL)) == {"r2/e-r2"}
    assert list(tmp_path.glob(".*")) == []
    assert rewrite_cache.delete(tmp_path, [ErasureTarget("q2", "erasure", "asker")], lambda row: False) == 1
    assert list(tmp_path.iterdir()) == []


# --- the endpoint -----------------------------------------------------------------------------------------------


def endpoint(answer: Callable[[httpx.Request], httpx.Response]) -> Endpoint:
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://model.example/v1/")
    return Endpoint(client, MODEL, wait_s=0)


def test_it_speaks_to_any_openai_compatible_endpoint() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(
            200, json={"choices": [{"message": {"role": "assistant", "content": " Two. "}}]}
        )

    assert endpoint(answer)("Do so.", "{}") == "Two."
    assert str(seen[0].url) == "http://model.example/v1/chat/completions"
    assert json.loads(seen[0].content) == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Do so."}, {"role": "user", "content": "{}"}],
        "temperature": 0,
    }


@pytest.mark.parametrize(
    ("response", "times"),
    [
        (httpx.Response(503), ATTEMPTS),
        (httpx.Response(429), ATTEMPTS),
        (httpx.Response(401), 1),
        (httpx.Response(302, headers={"location": "http://elsewhere.example"}), 1),
        (httpx.Response(200, json={"choices": []}), 1),
        (httpx.Response(200, text="<html>"), 1),
        (None, ATTEMPTS),
    ],
)
def test_what_may_pass_is_tried_again_and_what_cannot_is_not(
    response: httpx.Response | None, times: int
) -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if response is None:
            raise httpx.ConnectError("refused")
        return response

    with pytest.raises(RewriterFailed):
        endpoint(answer)("Do so.", "{}")
    assert calls == times


def test_the_key_is_sent_and_never_shown() -> None:
    key = "k-0123456789abcdefghij"
    settings = TrainerSettings(reviser_url="http://model.example/v1", reviser_model=MODEL, reviser_key=key)  # type: ignore[arg-type]
    with open_client(settings) as client:
        assert client.headers["authorization"] == f"Bearer {key}"
        assert not client.follow_redirects
    assert key not in repr(settings.masked())
