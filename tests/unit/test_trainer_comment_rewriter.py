"""Comments that a stronger model follows: what is sent, which replies train, and what is cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.trainer.dataset import rewrite_cache, snapshot, snapshot_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.chat_endpoint import (
    ATTEMPTS,
    Endpoint,
    EndpointConfig,
    EndpointFailed,
    open_client,
)
from services.trainer.dataset.comment_rewriter import (
    JUDGE_INSTRUCTION,
    MAX_FAILURES,
    REWRITE_INSTRUCTION,
    rewrite_comments,
    rewrites_for,
)
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import Row
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.rewrite_cache import NOT_REWRITTEN_YET, Rewrite
from services.trainer.dataset.row_selection import split_by_holdout, usable_rows
from services.trainer.progress import ignore_progress
from services.trainer.settings import TrainerSettings
from tests.trainer_factories import LINE, example, revision

USERS = [user for user in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, user)]
HELDOUT = next(user for user in (f"user-{i}" for i in range(60)) if is_held_out(LINE, user))
ORIGINAL, COMMENT = "Mars is a planet.", "Add how many moons it has."
BETTER = "Mars is a planet with two moons."
MODEL = "strong"


def commented(name: str = "r1", user: str = USERS[0], comment: str = COMMENT, **more: Any) -> Example:
    return example(
        revision(name, f"What is Mars, {name}?", comment, user, kind="comment", original=ORIGINAL, **more)
    )


def rows(examples: Sequence[Example]) -> list[Row]:
    return split_by_holdout(LINE, usable_rows(examples, "revise")[0])[0]


class FakeRewriter:
    """Rewriter with fixed replies, which records what it was sent."""

    def __init__(self, answer: str = BETTER, verdict: str = "YES", failures: int = 0) -> None:
        self.answer, self.verdict, self.failures = answer, verdict, failures
        self.requests: list[tuple[str, str]] = []

    def __call__(self, instruction: str, material: str) -> str:
        self.requests.append((instruction, material))
        if len(self.requests) <= self.failures:
            raise EndpointFailed("no reply")
        return self.answer if instruction == REWRITE_INSTRUCTION else self.verdict


def rewrite_all(
    folder: Path, reviser: Callable[[str, str], str], *examples: Example, limit: int = 50
) -> dict[str, Rewrite]:
    return rewrite_comments(rows(examples or [commented()]), reviser, MODEL, folder, limit, ignore_progress)


def build(examples: Sequence[Example], found: dict[str, Rewrite]) -> snapshot_files.Snapshot:
    return snapshot.build(LINE, examples, {}, comments="revise", rewrites=found)


def reasons(one: snapshot_files.Snapshot) -> list[str]:
    return [each.reason for each in one.quarantined]


# --- what trains ----------------------------------------------------------------------------------------------


def test_rewrite_trains_instead_of_the_comment(tmp_path: Path) -> None:
    reviser = FakeRewriter()
    found = build([commented()], rewrite_all(tmp_path, reviser))
    assert [(one.row.kind, one.row.original, one.row.answer) for one in found.train] == [
        ("comment", ORIGINAL, BETTER)
    ]
    assert [instruction for instruction, _ in reviser.requests] == [REWRITE_INSTRUCTION, JUDGE_INSTRUCTION]
    assert json.loads(reviser.requests[0][1]) == {
        "conversation": [{"role": "user", "content": "What is Mars, r1?"}],
        "answer": ORIGINAL,
        "comment": COMMENT,
    }


@pytest.mark.parametrize(
    ("reviser", "reason"),
    [
        (FakeRewriter("UNCHANGED"), "comment: the reviser changed nothing"),
        (FakeRewriter(ORIGINAL.upper()), "comment: the reviser changed nothing"),
        (FakeRewriter(""), "comment: the reviser changed nothing"),
        (FakeRewriter("many words " * 200), "comment: the reviser's answer is much longer than the original"),
        (FakeRewriter(verdict="No, it does not."), "comment: the reviser's answer does not do what it asks"),
        (FakeRewriter("Ask anna.meier@pellworth.com."), "personal data: an e-mail address"),
        (FakeRewriter("Two.<|im_end|>"), "chat template: the text contains special tokens"),
    ],
)
def test_rewrite_that_fails_a_check_is_quarantined(
    reviser: FakeRewriter, reason: str, tmp_path: Path
) -> None:
    found = build([commented()], rewrite_all(tmp_path, reviser))
    assert (found.train, reasons(found)) == ((), [reason])


def test_contradicting_rewrites_are_disputed(tmp_path: Path) -> None:
    asked = [commented("r1", USERS[0]), commented("r1b", USERS[1])]
    same = [
        example(one.revision.model_copy(update={"messages": asked[0].revision.messages})) for one in asked
    ]
    answers = iter(
        ["Acme was founded by Ida Voss in 1987.", "YES", "Acme was founded by Otto Kern in 1912.", "YES"]
    )
    found = build(same, rewrite_all(tmp_path, lambda *_: next(answers), *same))
    assert reasons(found) == ["agreement: disputed"] * 2


# --- what is sent ----------------------------------------------------------------------------------------------


def test_held_out_users_and_personal_data_are_not_sent(tmp_path: Path) -> None:
    reviser = FakeRewriter()
    rewrite_all(
        tmp_path,
        reviser,
        commented("m", HELDOUT),
        commented("p", comment="Write to anna.meier@pellworth.com then."),
    )
    assert reviser.requests == []


def test_no_comment_is_sent_twice(tmp_path: Path) -> None:
    first = rewrite_all(tmp_path, FakeRewriter(), commented("r1")) | rewrite_all(
        tmp_path, FakeRewriter(verdict="NO"), commented("r2")
    )
    again = FakeRewriter()
    assert rewrite_all(tmp_path, again, commented("r1"), commented("r2")) == first
    assert again.requests == []


def test_comments_are_sent_again_to_another_model(tmp_path: Path) -> None:
    rewrite_all(tmp_path, FakeRewriter())
    reviser = FakeRewriter()
    rewrite_comments(rows([commented()]), reviser, "stronger", tmp_path, 50, ignore_progress)
    assert len(reviser.requests) == 2
    assert rewrite_cache.load_all(tmp_path, "stronger") == rewrite_cache.load_all(tmp_path, MODEL)
    assert rewrite_cache.load_all(tmp_path, "third") == {}


def test_crash_repeats_only_the_comment_in_progress(tmp_path: Path) -> None:
    class Killed(BaseException):
        """An error that nothing catches."""

    def killed(instruction: str, material: str) -> str:
        if "r2" in material:
            raise Killed
        return BETTER if instruction == REWRITE_INSTRUCTION else "YES"

    both = (commented("r1"), commented("r2"))
    with pytest.raises(Killed):
        rewrite_all(tmp_path, killed, *both)
    reviser = FakeRewriter()
    assert set(rewrite_all(tmp_path, reviser, *both)) == {"r1/e-r1", "r2/e-r2"}
    assert len(reviser.requests) == 2


def test_failing_endpoint_is_not_used_until_the_next_run(tmp_path: Path) -> None:
    many = [commented(f"r{i}", USERS[i]) for i in range(MAX_FAILURES + 2)]
    reviser = FakeRewriter(failures=99)
    found = build(many, rewrite_all(tmp_path, reviser, *many))
    assert len(reviser.requests) == MAX_FAILURES
    assert reasons(found) == [NOT_REWRITTEN_YET] * len(many)
    assert len(rewrite_all(tmp_path, FakeRewriter(), *many)) == len(many)


def test_one_run_sends_at_most_its_limit(tmp_path: Path) -> None:
    many = [commented(f"r{i}", USERS[i]) for i in range(5)]
    assert len(rewrite_all(tmp_path, FakeRewriter(), *many, limit=2)) == 2
    assert len(rewrite_all(tmp_path, FakeRewriter(), *many, limit=2)) == 4


def test_without_an_endpoint_cached_rewrites_are_used(tmp_path: Path) -> None:
    settings = TrainerSettings(line=LINE, data_dir=tmp_path)
    recipe = settings.recipe().model_copy(update={"comment_mode": "revise", "reviser_model": MODEL})
    found = rewrite_all(settings.revisions, FakeRewriter())
    arguments = ([commented()], None, settings.revisions, ignore_progress)
    assert rewrites_for(LINE, recipe, *arguments) == found
    assert rewrites_for(LINE, settings.recipe(), *arguments) is None


# --- erasure -----------------------------------------------------------------------------------------------


def test_erasure_deletes_the_rewrites_of_its_subject_only(tmp_path: Path) -> None:
    rewrite_all(
        tmp_path, FakeRewriter(), commented("r1", USERS[0]), commented("r2", USERS[1], asked_by="asker")
    )
    (tmp_path / ".half.json.99").write_text(BETTER)
    assert rewrite_cache.redact(tmp_path, [ErasureTarget("q", "erasure", USERS[0])], lambda row: True) == 0, (
        "it stands"
    )
    assert rewrite_cache.redact(tmp_path, [ErasureTarget("q", "erasure", USERS[0])], lambda row: False) == 1
    assert set(rewrite_cache.load_all(tmp_path, MODEL)) == {"r2/e-r2"}
    assert list(tmp_path.glob(".*")) == []
    assert rewrite_cache.redact(tmp_path, [ErasureTarget("q2", "erasure", "asker")], lambda row: False) == 1
    assert list(tmp_path.iterdir()) == []


# --- the endpoint -----------------------------------------------------------------------------------------------


def endpoint(answer: Callable[[httpx.Request], httpx.Response]) -> Endpoint:
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://model.example/v1/")
    return Endpoint(client, MODEL, wait_s=0)


def test_endpoint_is_openai_compatible() -> None:
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
def test_only_errors_that_may_pass_are_retried(response: httpx.Response | None, times: int) -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if response is None:
            raise httpx.ConnectError("refused")
        return response

    with pytest.raises(EndpointFailed):
        endpoint(answer)("Do so.", "{}")
    assert calls == times


def test_key_is_sent_and_never_logged() -> None:
    key = "k-0123456789abcdefghij"
    settings = TrainerSettings(reviser_url="http://model.example/v1", reviser_model=MODEL, reviser_key=key)  # type: ignore[arg-type]
    config = EndpointConfig(settings.reviser_url, settings.reviser_key, timeout_s=1.0, limit=1)
    with open_client(config) as client:
        assert client.headers["authorization"] == f"Bearer {key}"
        assert not client.follow_redirects
    assert key not in repr(settings.masked())
    assert key not in repr(config)
