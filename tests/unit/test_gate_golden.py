"""The operator's golden set: what an answer must contain, and how a bad file is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.trainer.__main__ import run
from services.trainer.gate.golden import read_golden_set
from services.trainer.settings import TrainerSettings
from shared.errors import Misconfigured


def write_golden_set(folder: Path, *lines: object) -> Path:
    path = folder / "golden.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_answer_must_contain_what_is_required_and_nothing_forbidden(tmp_path: Path) -> None:
    path = write_golden_set(
        tmp_path,
        {"question": "How long?", "must_contain": ["days", ["41", "forty"]], "must_not_contain": ["30"]},
        "",
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Who founded Acme?"},
            ],
            "reference": "Acme was founded by Ida Voss.",
            "name": "founder",
        },
    )
    days, founder = read_golden_set(path)
    assert (days.name, founder.name) == ("line 1", "founder")
    assert days.faults("You have forty-one days.") == []
    assert days.faults("You have 30 days.") == ["does not contain '41' or 'forty'", "contains '30'"]
    assert founder.faults("Ida Voss founded it.") == []
    assert "unlike its reference" in founder.faults("I am not sure.")[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: invalid JSON"),
        ({"question": "Who?"}, "line 2: no check for the answer"),
        ({"must_contain": ["x"]}, "line 2: give either question or messages"),
        ({"question": "Who?", "must_contian": ["x"]}, "line 2: must_contian"),
        ({"question": "Who?", "must_contain": [""]}, "line 2: must_contain"),
        (
            {"messages": [{"role": "assistant", "content": "Hi"}], "reference": "x"},
            "line 2: the last message",
        ),
        (
            {"question": "Who?", "name": "one", "reference": "x"},
            "the name 'one' is used more than once",
        ),
    ],
)
def test_invalid_golden_set_is_rejected_by_line(tmp_path: Path, line: object, message: str) -> None:
    path = write_golden_set(tmp_path, {"question": "What?", "reference": "That.", "name": "one"}, line)
    with pytest.raises(Misconfigured, match=r"golden\.jsonl") as error:
        read_golden_set(path)
    assert message in str(error.value)


def test_empty_or_missing_golden_set_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="it contains no question"):
        read_golden_set(write_golden_set(tmp_path, ""))
    with pytest.raises(Misconfigured, match="cannot be read"):
        read_golden_set(tmp_path / "nowhere.jsonl")


def test_trainer_does_not_start_with_an_invalid_golden_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.__main__.signal.signal", lambda *_: None)
    settings = TrainerSettings(golden=write_golden_set(tmp_path, "{"), data_dir=tmp_path / "data")
    with pytest.raises(Misconfigured, match="line 1: invalid JSON"):
        run(settings)
    assert not (tmp_path / "data").exists()
