"""Message of `loopwright train now --dry-run`: what would train, and why a run starts or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.trainer.core.recipe import KTO_LEAST, CommentMode
from services.trainer.core.trigger import Decision, NewData
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, count_reasons
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.votes import ChangeRule


def dry_run_message(
    line: str,
    examples: Sequence[Example],
    through: Mapping[str, int],
    new_data: NewData,
    decision: Decision,
    *,
    comments: CommentMode,
    kto_least: int = KTO_LEAST,
    change_rule: ChangeRule | None = None,
    max_tokens: int | None = None,
    open_run: str | None = None,
    trains: bool = True,
) -> str:
    """Return what a run would train now, and whether one starts without a command.

    The snapshot is built as in a run, except for three things that only a run knows, each of which leaves fewer
    rows: the token limit, the questions of the stable version, and answers rewritten from comments.

    Args:
        line: The line.
        examples: Everything that is collected.
        through: Highest batch number of `examples`, by partition.
        new_data: Counts of the new usable data.
        decision: Whether a run starts without a command, and why.
        comments: How comments are used.
        kto_least: Judgements with the rarer label that KTO needs.
        change_rule: When newer votes about a fact outweigh older ones.
        max_tokens: Longest row in tokens. Only rows that cannot be within it are left out here.
        open_run: Id of the open run, if there is one.
        trains: Whether this trainer trains, rather than exporting datasets.

    """
    from services.trainer.dataset import snapshot  # noqa: PLC0415 - imports scikit-learn

    built = snapshot.build(
        line,
        examples,
        through,
        comments=comments,
        kto_least=kto_least,
        change_rule=change_rule,
        max_tokens=max_tokens,
    )
    parts = [_training_summary(built, new_data)]
    if not trains:
        starts = "a dataset is exported automatically" if decision.start else "no dataset is exported yet"
        parts.append(f"but this trainer never trains (mode: export); {starts}: {decision.reason}")
    elif open_run is not None:
        parts.append(f"run {open_run} is in progress: new data is for the next run")
    elif decision.start:
        parts.append(f"a run starts automatically: {decision.reason}")
    else:
        parts.append(f"no run starts automatically: {decision.reason}")
    quarantined = count_reasons(built.quarantined)
    if quarantined:
        parts.append(
            "quarantined: " + ", ".join(f"{count} ({reason})" for reason, count in quarantined.items())
        )
    return "; ".join(parts)


def _training_summary(built: Snapshot, new_data: NewData) -> str:
    if not new_data.examples:
        return "would train nothing: nothing usable is new since the last run"
    if not built.train:
        return "would train nothing: the checks leave no rows"
    return (
        f"would train {len(built.train)} examples of {_users(built.train)} users "
        f"({new_data.examples} usable are new), "
        f"evaluated on {len(built.heldout)} of {_users(built.heldout)} held-out users"
    )


def _users(rows: Sequence[GroupedRow]) -> int:
    return len({row.row.user_id for row in rows})
