"""The kinds of feedback, and their values on the command line. The only list of kinds in the SDK.

A contract test compares it with the services' table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

FeedbackKind = Literal["thumbs", "rating", "correction", "comment", "preference", "retract"]
"""Kinds of feedback."""


@dataclass(frozen=True, slots=True)
class ValueHelp:
    """What the value of a kind is."""

    help: str
    """Allowed values, for the help text of `loopwright send`."""
    choices: tuple[str | int, ...] = ()
    """All allowed values. Empty if any text is allowed."""
    by_options: bool = False
    """Whether the options `--over` and `--under` replace the value."""


VALUES: Final[Mapping[FeedbackKind, ValueHelp]] = MappingProxyType(
    {
        "thumbs": ValueHelp("up or down", choices=("up", "down")),
        "rating": ValueHelp("1 to 5", choices=(1, 2, 3, 4, 5)),
        "correction": ValueHelp("the right answer"),
        "comment": ValueHelp("its text"),
        "preference": ValueHelp("--over or --under", by_options=True),
        "retract": ValueHelp("the event's id"),
    }
)
"""The value of each kind."""
