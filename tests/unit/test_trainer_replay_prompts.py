"""Replay prompts: the shipped ones and an operator's own, which a run keeps as they were when it began."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.base.base_answers import REPLAY_PROMPTS, shipped_prompts
from services.trainer.base.replay_prompt_file import read_replay_prompts
from services.trainer.base.replay_prompts import choose_prompts, prompts_of_run
from shared.errors import Misconfigured


def test_prompts_are_read_from_plain_text_and_json(tmp_path: Path) -> None:
    plain = tmp_path / "prompts.txt"
    plain.write_bytes('\ufeffName a tree.\r\n\r\n  {"not": json}  \nName a tree.\nÜber Bäume?'.encode())
    assert read_replay_prompts(plain) == ["Name a tree.", '{"not": json}', "Über Bäume?"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": " Two\\nlines ", "id": 7}\n\n{"prompt": "Two\\nlines"}\n', encoding="utf-8")
    assert read_replay_prompts(lines) == ["Two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"prompt": "x"}\n{"prompt": }\n',
            "line 2: invalid JSON: Expecting value at character 12",
        ),
        ("a.jsonl", b'\n["x"]\n', 'line 2: expected an object with a text as "prompt"'),
        ("a.jsonl", b'{"prompt": " "}', 'line 1: expected an object with a text as "prompt"'),
        ("a.jsonl", b'{"prompt": 3}', 'line 1: expected an object with a text as "prompt"'),
        ("a.txt", b"good\n\xffbad", "line 2: invalid UTF-8 at byte 1"),
        ("a.txt", b"x" * 8001, "line 1: the prompt is longer than 8000 characters"),
        ("a.txt", b"\n \n", "it has no prompts"),
        ("a.txt", b"\xff\n" * 9, "(and 4 more)"),
    ],
)
def test_invalid_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(Misconfigured) as refused:
        read_replay_prompts(file)
    assert message in str(refused.value)
    assert str(file) in str(refused.value)


def test_missing_file_is_refused_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_TRAINER_REPLAY_PROMPT_FILE"):
        read_replay_prompts(tmp_path / "none.txt")


def test_run_keeps_the_prompts_with_which_it_began(tmp_path: Path) -> None:
    file, run = tmp_path / "prompts.txt", tmp_path / "run"
    file.write_text("Name a tree.\nName a river.\n", encoding="utf-8")
    first = prompts_of_run(run, file)
    file.write_text("Name a town.\n", encoding="utf-8")
    assert prompts_of_run(run, file) == prompts_of_run(run, None) == first
    assert [one.prompt for one in first] == ["Name a tree.", "Name a river."]
    without = tmp_path / "other"
    assert prompts_of_run(without, None) == []
    assert prompts_of_run(without, file) == []


def test_own_prompts_are_half_as_far_as_there_are_enough(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"Prompt {i}\n" for i in range(300)), encoding="utf-8")
    own, shipped = prompts_of_run(tmp_path / "run", file), shipped_prompts(REPLAY_PROMPTS)

    def counts(own_count: int, wanted: int) -> tuple[int, int]:
        chosen = choose_prompts(own[:own_count], wanted)
        assert len({one.id for one in chosen}) == len(chosen)
        from_own = sum(one.id.startswith("own-") for one in chosen)
        return len(chosen) - from_own, from_own

    assert counts(300, 320) == (160, 160)
    assert counts(20, 320) == (300, 20)
    assert counts(0, 320) == (320, 0)
    assert counts(300, 700) == (400, 300)
    assert counts(300, 10_000) == (len(shipped), 300)
    assert choose_prompts([], 320) == shipped_prompts(REPLAY_PROMPTS, 320)
