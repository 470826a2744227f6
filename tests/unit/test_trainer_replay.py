from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.trainer.replay import (
    EVALUATION,
    REPLAY,
    Prompt,
    base_answers,
    shipped,
    spread,
    whole_sentences,
)


def test_the_bases_answers_are_made_once_and_only_what_is_missing_later(tmp_path: Path) -> None:
    asked: list[str] = []

    def answering(prompts: Sequence[Prompt], new_tokens: int) -> list[str]:
        asked.extend(prompt.id for prompt in prompts)
        return [f"about {prompt.prompt}" for prompt in prompts]

    prompts = shipped(REPLAY, 6)
    file = tmp_path / "replay" / "ab.jsonl"
    first = base_answers(file, prompts[:4], 48, answering)
    again = base_answers(file, prompts, 48, answering)
    assert again[:4] == first
    assert asked == [prompt.id for prompt in prompts]
    assert base_answers(file, prompts, 48, answering) == again
    assert len(asked) == 6


def test_prompts_are_spread_over_all_kinds_and_those_for_measuring_are_never_replayed() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert len(shipped(REPLAY, 100)) == 100
    replayed = {prompt.prompt for prompt in shipped(REPLAY, 10_000)}
    assert not replayed & {prompt.prompt for prompt in shipped(EVALUATION, 10_000)}


def test_an_answer_that_was_cut_off_ends_with_its_last_whole_sentence() -> None:
    assert whole_sentences("It is blue. Because the light of the su") == "It is blue."
    assert whole_sentences("Some people say that it was") == "", "no answer at all rather than half of one"
