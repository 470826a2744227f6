"""Rules of a dead-letter replay: which dead letters may be sent back, and how the result is reported."""

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

MAX_COMMAND_AGE_MS: Final = 86_400_000
"""An older command sends nothing more: its operator no longer expects it, and retention may have removed the records
that show what an earlier attempt sent."""

TOO_OLD: Final = "not sent because the command is older than a day; issue it again"
NOT_FOUND: Final = "not found"
ALREADY_REPLAYED: Final = "already replayed"
CONTENT_OMITTED: Final = "too large to have been kept"
INVALID_POSITION: Final = "with an invalid position"
NO_PARTITION: Final = "from a partition that does not exist"
FOREIGN_TOPIC: Final = "from a topic that this service may not write"


@dataclass(slots=True)
class ReplayReport:
    """Result for each dead letter that a command names."""

    sent: dict[str, str] = field(default_factory=dict)
    """Position of each dead letter that was sent back -> the topic."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of dead letters that were not sent back."""

    def message(self) -> str:
        """Return the result in a sentence, for the operator."""
        if not self.sent:
            return f"nothing was replayed: {_enumerate(self.skipped) or 'the command names no dead letter'}"
        topics = ", ".join(f"{count} to {topic}" for topic, count in sorted(self.sent_by_topic().items()))
        skipped = f"; not replayed: {_enumerate(self.skipped)}" if self.skipped else ""
        return f"replayed {len(self.sent)} dead letter{'s' * (len(self.sent) != 1)}: {topics}{skipped}"

    def sent_by_topic(self) -> dict[str, int]:
        """Return how many dead letters were sent back to each topic."""
        return dict(Counter(self.sent.values()))


def parse_positions(texts: Iterable[str], report: ReplayReport) -> list[DeadLetterPosition]:
    """Return the positions in order and without repetitions. Invalid ones are added to `report`."""
    positions = set()
    for text in texts:
        try:
            positions.add(DeadLetterPosition.parse(text))
        except Malformed:
            report.skipped[INVALID_POSITION] += 1
    return sorted(positions)


def skip_reason(letter: DeadLetter | None, service: str, replayed: Collection[str]) -> str | None:
    """Return why a dead letter cannot be sent back, or None if it can.

    Args:
        letter: the dead letter, or None if there is none at the position.
        service: the service that would send it.
        replayed: positions of the dead letters that were sent back before.

    """
    if letter is None:
        return NOT_FOUND
    if str(letter.position) in replayed:
        return ALREADY_REPLAYED
    if letter.origin.topic not in TOPICS or not may_write(service, letter.origin.topic):
        return FOREIGN_TOPIC
    if letter.omitted_bytes is not None:
        return CONTENT_OMITTED
    if letter.origin_partition is None:
        return NO_PARTITION
    return None


def command_result(command: Replay, report: ReplayReport, executor: str, at: datetime) -> CommandResult:
    """Return the result of `command`: `done` if it sent at least one dead letter back, else `refused`."""
    return CommandResult(
        line=command.line,
        command_id=command.command_id,
        status="done" if report.sent else "refused",
        message=report.message()[:2048],
        executor=executor,
        finished_at=at,
        replayed=Replayed(positions=tuple(report.sent), topics=report.sent_by_topic()),
    )


def _enumerate(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
