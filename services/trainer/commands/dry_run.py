"""What a dry run says: what would train, what is missing, what is held back. Pure; no text of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.trainer.core.recipe import KTO_LEAST, CommentMode
from services.trainer.core.trigger import Decision, Waiting
from services.trainer.dataset import snapshot
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import Grouped, reasons
from services.trainer.dataset.snapshot import Snapshot


def dry_run_message(
    line: str,
    examples: Sequence[Example],
    through: Mapping[str, int],
    waiting: Waiting,
    decision: Decision,
    *,
    comments: CommentMode,
    kto_least: int = KTO_LEAST,
    under_way: str | None = None,
    trains: bool = True,
) -> str:
    """`examples`: all that is collected. `decision`: whether a run would begin by itself. `under_way`: the open run.
    `trains`: False where this trainer writes a dataset instead.

    A snapshot is taken as a run takes it, but for the token limit, the questions of the version that serves and what a
    reviser makes of comments: all are known within a run only, and leave less.
    """
    taken = snapshot.take(line, examples, through, comments=comments, kto_least=kto_least)
    parts = [what_trains(taken, waiting)]
    if not trains:
        begins = "a dataset is written by itself" if decision.start else "no dataset is written by itself"
        parts.append(f"but this trainer never trains (mode: export); {begins}: {decision.reason}")
    elif under_way is not None:
        parts.append(f"run {under_way} is under way: what is new is for the next one")
    elif decision.start:
        parts.append(f"a run begins by itself: {decision.reason}")
    else:
        parts.append(f"no run begins by itself: {decision.reason}")
    held = reasons(taken.held)
    if held:
        parts.append("held back: " + ", ".join(f"{n} ({reason})" for reason, n in held.items()))
    return "; ".join(parts)


def what_trains(taken: Snapshot, waiting: Waiting) -> str:
    if not waiting.examples:
        return "would train nothing: nothing usable is new since the last run"
    if not taken.train:
        return "would train nothing: verification leaves nothing"
    trained = f"would train {len(taken.train)} examples of {_users(taken.train)} users"
    measured = f"measured with {len(taken.measure)} of {_users(taken.measure)} held-out users"
    return f"{trained} ({waiting.examples} usable are new), {measured}"


def _users(rows: Sequence[Grouped]) -> int:
    return len({one.row.user_id for one in rows})
