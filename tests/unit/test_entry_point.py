"""The entry point that all services share."""

from __future__ import annotations

import pytest

from shared import entry_point
from shared.entry_point import run_service
from shared.errors import Misconfigured
from shared.settings import Settings


@pytest.fixture(autouse=True)
def unchanged_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_point, "configure_logging", lambda *_: None)


def test_service_runs_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_LINE", "support")
    lines: list[str] = []
    run_service("probe", Settings, lambda settings: lines.append(settings.line))
    assert lines == ["support"]


def test_invalid_setting_ends_with_its_variable_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_PARTITIONS", "none")
    with pytest.raises(SystemExit, match="probe: invalid settings: LOOPWRIGHT_PARTITIONS: "):
        run_service("probe", Settings, lambda _: None)


def test_expected_error_ends_with_one_line() -> None:
    def run(_: Settings) -> None:
        raise Misconfigured("topics missing: run the topics job")

    with pytest.raises(SystemExit, match=r"^probe: topics missing: run the topics job$"):
        run_service("probe", Settings, run)


def test_unexpected_error_is_not_hidden() -> None:
    def run(_: Settings) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_service("probe", Settings, run)
