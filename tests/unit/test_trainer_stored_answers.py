"""Answers of an interrupted gate: used for exactly the same question, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.core.chat import Messages
from services.trainer.gate.stored_answers import StoredAnswers
from services.trainer.run.folder import GATE_PARTS, WITHOUT_TEXT

PROMPTS: list[Messages] = [(("user", "Who founded Acme?"),), (("system", "Be brief."), ("user", "When?"))]


def stored(run: Path, stable: str = "a@v1") -> StoredAnswers:
    return StoredAnswers(run, {"candidate": "candidate", "stable": stable})


class Generator:
    """Counts how often answers are generated."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[str]:
        self.calls += 1
        return [f"answer {self.calls}", "ünïcode"]


def test_next_process_reads_what_is_complete(tmp_path: Path) -> None:
    generate = Generator()
    found = [stored(tmp_path).answers("stable", "answers", PROMPTS, 40, generate) for _ in range(3)]
    assert found == [["answer 1", "ünïcode"]] * 3
    assert generate.calls == 1


@pytest.mark.parametrize("changed", ["prompts", "tokens", "version", "side", "task"])
def test_other_questions_are_generated(tmp_path: Path, changed: str) -> None:
    generate = Generator()
    stored(tmp_path).answers("stable", "answers", PROMPTS, 40, generate)
    stored(tmp_path, "a@v2" if changed == "version" else "a@v1").answers(
        "candidate" if changed == "side" else "stable",
        "safety" if changed == "task" else "answers",
        PROMPTS[:1] if changed == "prompts" else PROMPTS,
        41 if changed == "tokens" else 40,
        generate,
    )
    assert generate.calls == 2


def test_interrupted_generation_stores_nothing(tmp_path: Path) -> None:
    def fail() -> list[str]:
        raise MemoryError

    with pytest.raises(MemoryError):
        stored(tmp_path).answers("stable", "answers", PROMPTS, 40, fail)
    generate = Generator()
    stored(tmp_path).answers("stable", "answers", PROMPTS, 40, generate)
    assert generate.calls == 1


def test_files_are_deleted_with_the_report_and_by_erasures(tmp_path: Path) -> None:
    """I11: they contain users' questions."""
    answers = stored(tmp_path)
    answers.answers("stable", "answers", PROMPTS, 40, Generator())
    answers.remove()
    assert not (tmp_path / GATE_PARTS).exists()
    assert GATE_PARTS not in WITHOUT_TEXT
