"""Message of `loopwright train now --dry-run`: what would train, and why a run starts or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.trainer.dataset import snapshot
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import Check, GroupedRow, count_reasons
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.votes import ChangeRule
from services.trainer.settings import TrainerSettings


def dry_run_message(
    settings: TrainerSettings,
    examples: Iterable[Example],
    new_examples: int,
    prospects: str,
    unfit: Check = lambda row: None,
) -> str:
    """Return what a run would train now, and whether one starts without a command.

    The snapshot is built as in a run, except for what only a run knows, each of which leaves fewer rows: the token
    limit, what the chat template refuses, the questions of the stable version, and answers rewritten from comments.

    Args:
        settings: The trainer's settings.
        examples: Everything that is collected.
        new_examples: Number of usable examples that are new.
        prospects: Whether a run starts without a command, and why.
        unfit: Why a row cannot train on this base, or None.

    """
    built = snapshot.build(
        settings.line,
        examples,
        {},
        comments=settings.comment_mode,
        kto_least=settings.kto_least,
        change_rule=ChangeRule.of(settings),
        max_tokens=settings.largest_max_tokens,
        unfit=unfit,
    )
    parts = [_training_summary(built, new_examples), prospects]
    quarantined = count_reasons(built.quarantined)
    if quarantined:
        parts.append(
            "quarantined: " + ", ".join(f"{count} ({reason})" for reason, count in quarantined.items())
        )
    return "; ".join(parts)


def _training_summary(built: Snapshot, new_examples: int) -> str:
    if not new_examples:
        return "would train nothing: nothing usable is new since the last run"
    if not built.train:
        return "would train nothing: the checks leave no rows"
    return (
        f"would train {len(built.train)} examples of {_users(built.train)} users "
        f"({new_examples} usable are new), "
        f"evaluated on {len(built.heldout)} of {_users(built.heldout)} held-out users"
    )


def _users(rows: Sequence[GroupedRow]) -> int:
    return len({row.row.user_id for row in rows})
