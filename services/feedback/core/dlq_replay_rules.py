"""Which dead letters a replay sends back, and what it tells of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from shared.commands import CommandResult, Replay, Replayed
from shared.dead_letter_replay import DeadLetter, DeadLetterPosition
from shared.errors import Malformed
from shared.topics import TOPICS, may_write

AGE_MS: Final = 86_400_000
"""A command that waited for longer sends nothing more: who gave it no longer expects it, and what came of it may have
left the log."""
LATE: Final = "not sent, for the command had waited for longer than a day: give it again"
NOT_THERE: Final = "no longer there"
BEFORE: Final = "replayed before"
OMITTED: Final = "too large to have been kept"
NO_POSITION: Final = "no position"
NO_PARTITION: Final = "of a partition that is not there"
FOREIGN: Final = "of a topic that only its own service writes"


def parse_positions(positions: Iterable[str], account: ReplayReport) -> list[DeadLetterPosition]:
    """In order, each once; what is none is accounted for."""
    places = set()
    for text in positions:
        try:
            places.add(DeadLetterPosition.parse(text))
        except Malformed:
            account.left[NO_POSITION] += 1
    return sorted(places)


def skip_reason(letter: DeadLetter | None, service: str, replayed: Collection[str]) -> str | None:
    """Why it cannot go back; None if it can. `replayed`: the places of those that have."""
    if letter is None:
        return NOT_THERE
    if str(letter.position) in replayed:
        return BEFORE
    if letter.origin.topic not in TOPICS or not may_write(service, letter.origin.topic):
        return FOREIGN
    if letter.omitted_bytes is not None:
        return OMITTED
    if letter.origin_partition is None:
        return NO_PARTITION
    return None


@dataclass(slots=True)
class ReplayReport:
    """What became of the dead letters that a command names."""

    sent: dict[str, str] = field(default_factory=dict)
    """place -> topic"""
    left: Counter[str] = field(default_factory=Counter)
    """reason -> how many were not sent"""

    def told(self) -> str:
        """For the person who gave the command."""
        if not self.sent:
            return f"nothing was replayed: {_counted(self.left) or 'no dead letter was named'}"
        topics = ", ".join(f"{count} to {topic}" for topic, count in sorted(self.topics().items()))
        left = f"; not replayed: {_counted(self.left)}" if self.left else ""
        return f"replayed {len(self.sent)} dead letter{'s' * (len(self.sent) != 1)}: {topics}{left}"

    def topics(self) -> dict[str, int]:
        return dict(Counter(self.sent.values()))


def command_result(command: Replay, account: ReplayReport, executor: str, at: datetime) -> CommandResult:
    """`done` if anything went back."""
    return CommandResult(
        line=command.line,
        command_id=command.command_id,
        status="done" if account.sent else "refused",
        message=account.told()[:2048],
        executor=executor,
        finished_at=at,
        replayed=Replayed(positions=tuple(account.sent), topics=account.topics()),
    )


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
