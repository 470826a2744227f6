"""Data card of a snapshot: statistics of what a run trains on, without user text and without ids of users.

It may therefore be kept after an erasure of the rows that it counts, and be shown to anyone who asks what a version was
made from. `data-card.json` and `data-card.md` have the same content. Both are written before `snapshot.json`, so a
complete snapshot has them; training adds the share of replay data when it starts, because it is not known before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.trainer.core.recipe import Recipe
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, count_reasons
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.token_budget import BEYOND_BUDGET
from services.trainer.dataset.words import normalised
from services.trainer.files import write_whole

DATA_CARD: Final = "data-card.json"
DATA_CARD_PAGE: Final = "data-card.md"


class CardPart(BaseModel):
    """Base of the card and its parts."""

    model_config = ConfigDict(frozen=True)


class RowStats(CardPart):
    """Statistics of the rows that train, or of the held-out rows."""

    rows: int
    users: int
    kinds: dict[str, int]
    """Kind of feedback -> rows."""
    imported: int
    questions: int
    """Distinct wordings."""
    groups: int
    """Question groups, that is, distinct questions by meaning."""
    largest_user_share: float
    objectives: dict[str, int]
    """Objective -> rows; KTO separately per label."""
    unended: int = 0
    """Rows whose answer was truncated; for a preference, the better answer."""


class Quantiles(CardPart):
    """Quantiles of lengths in tokens. Each is a length that occurs."""

    p10: int = 0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    longest: int = 0


class Tokens(CardPart):
    """Tokens of the rows that train, each row once. `prompt` is the conversation before the answer."""

    all: int
    prompt: Quantiles
    answer: Quantiles


class Duplicates(CardPart):
    """Repetitions of the same answer to the same question."""

    same_user: int
    """Quarantined: what a user gives twice counts once."""
    between_users: int
    """Rows that train although another user gave the same: that is agreement."""


class Replay(CardPart):
    """The base's own answers among what trains."""

    least_share: float
    """Minimum share of all trained tokens that the recipe asks for."""
    rows: int | None = None
    prompts: int | None = None
    """Distinct prompts among these rows."""
    share: float | None = None
    """Share of all trained tokens, over all epochs; None until training starts."""
    warning: str | None = None
    """What is missing if the share is smaller than the recipe asks for, and what to do."""


class DataCard(CardPart):
    """Data card of one snapshot."""

    line: str
    run_id: str
    began_at: AwareDatetime
    digest: str
    through: dict[str, int]
    """Partition -> highest batch number read."""
    examples: int
    """Responses with current feedback within `through`."""
    signals: dict[str, int]
    """Kind -> signals of these examples, whether they train or not."""
    training: RowStats
    measuring: RowStats
    """Held-out rows, which evaluate versions."""
    tokens: Tokens
    duplicates: Duplicates
    replay: Replay
    held: dict[str, int]
    """Reason -> quarantined events."""
    beyond_budget: int = 0
    """Rows that could train but are beyond the token budget. They are not quarantined: the next run may take them."""


@dataclass(slots=True)
class ExamplesRead:
    """Counts of examples, kept while a snapshot reads them, because nothing else needs all of them at once."""

    examples: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    """Kind -> signals."""

    def counted(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples, and count each."""
        for example in examples:
            self.examples += 1
            self.signals.update(signal.kind for signal in example.revision.signals)
            yield example


def build_card(
    line: str,
    run_id: str,
    began_at: datetime,
    recipe: Recipe,
    snapshot: Snapshot,
    read: ExamplesRead,
    lengths: Sequence[tuple[int, int]],
) -> DataCard:
    """Return the card of a snapshot.

    Args:
        line: name of the line.
        run_id: run that takes the snapshot.
        began_at: when the run began.
        recipe: recipe of the run.
        snapshot: the snapshot.
        read: counts of the examples that it was built from.
        lengths: tokens of prompt and answer of each row that trains.

    """
    answers = Counter((normalised(one.row.question), normalised(one.row.answer)) for one in snapshot.train)
    reasons = count_reasons(snapshot.quarantined)
    beyond_budget = reasons.pop(BEYOND_BUDGET, 0)
    return DataCard(
        line=line,
        run_id=run_id,
        began_at=began_at,
        digest=snapshot.digest(),
        through=dict(snapshot.through),
        examples=read.examples,
        signals=dict(sorted(read.signals.items())),
        training=_stats(snapshot.train),
        measuring=_stats(snapshot.heldout),
        tokens=Tokens(
            all=sum(map(sum, lengths)),
            prompt=quantiles([prompt for prompt, _ in lengths]),
            answer=quantiles([answer for _, answer in lengths]),
        ),
        duplicates=Duplicates(
            same_user=sum(count for reason, count in reasons.items() if reason.startswith("duplicate: ")),
            between_users=len(snapshot.train) - len(answers),
        ),
        replay=Replay(least_share=recipe.replay_share),
        held=reasons,
        beyond_budget=beyond_budget,
    )


def _stats(rows: Sequence[GroupedRow]) -> RowStats:
    per_user = Counter(one.row.user_id for one in rows)
    return RowStats(
        rows=len(rows),
        users=len(per_user),
        kinds=dict(sorted(Counter(one.row.kind for one in rows).items())),
        imported=sum(one.row.imported for one in rows),
        questions=len({normalised(one.row.question) for one in rows}),
        groups=len({one.group for one in rows}),
        largest_user_share=round(max(per_user.values(), default=0) / max(1, len(rows)), 4),
        objectives=dict(sorted(Counter(map(_objective, rows)).items())),
        unended=sum(one.row.unended for one in rows),
    )


def _objective(one: GroupedRow) -> str:
    if one.row.objective != "kto":
        return one.row.objective
    return "kto liked" if one.row.label else "kto disliked"


def quantiles(lengths: Sequence[int]) -> Quantiles:
    """Return quantiles of lengths; all 0 for no lengths."""
    if not lengths:
        return Quantiles()
    values = np.quantile(lengths, [0.1, 0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
    p10, p50, p90, p99, longest = (int(value) for value in values)
    return Quantiles(p10=p10, p50=p50, p90=p90, p99=p99, longest=longest)


def write(folder: Path, card: DataCard) -> None:
    """Write both files, the page first, so that a folder with the JSON file has both."""
    write_whole(folder / DATA_CARD_PAGE, render_page(card).encode())
    write_whole(folder / DATA_CARD, (card.model_dump_json(indent=1) + "\n").encode())


def read(folder: Path) -> DataCard | None:
    """Return the card in a folder, or None if it has none."""
    file = folder / DATA_CARD
    return DataCard.model_validate_json(file.read_bytes()) if file.exists() else None


def record_replay(folder: Path, rows: int, tokens: int, others: int, prompts: int) -> str | None:
    """Add the replay data of a run to the card, if there is one, and return its warning, if it has one.

    Args:
        folder: the run's folder.
        rows: rows of replay data.
        tokens: their tokens.
        others: tokens of all other rows, over all epochs.
        prompts: distinct prompts among the rows.

    """
    card = read(folder)
    if card is None:
        return None
    share = round(tokens / max(1, tokens + others), 4)
    warning = None
    if tokens < card.replay.least_share * (tokens + others):
        warning = (
            f"replay data is {share:.1%} of the trained tokens instead of {card.replay.least_share:.1%}, although each "
            f"of {prompts} prompts trains once per epoch. The version may forget more of what the base could do. Set "
            "LOOPWRIGHT_TRAINER_REPLAY_PROMPT_FILE to a file with more general prompts"
        )
    update = {"rows": rows, "prompts": prompts, "share": share, "warning": warning}
    write(folder, card.model_copy(update={"replay": card.replay.model_copy(update=update)}))
    return warning


def render_page(card: DataCard) -> str:
    """Return the card as Markdown."""
    replay = card.replay
    replayed = (
        f"at least {replay.least_share:.1%} of the trained tokens"
        if replay.share is None
        else f"{replay.share:.1%} of the trained tokens, {replay.rows} rows of {replay.prompts} prompts"
    )
    warning = f"\n\nWarning: {replay.warning}." if replay.warning else ""
    return f"""# What a run of {card.line} trains on

Statistics of snapshot `{card.digest[:8]}`, run `{card.run_id}` of {card.began_at:%Y-%m-%d %H:%M} UTC.

Read: {card.examples} examples (signals: {_listed(card.signals)}); \
batches (partition: highest number) {_listed(card.through, ": ")}.

| | trains | held out |
| --- | --- | --- |
{_compared(card.training, card.measuring)}

| tokens | p10 | p50 | p90 | p99 | longest |
| --- | --- | --- | --- | --- | --- |
{_lengths("conversation", card.tokens.prompt)}
{_lengths("answer", card.tokens.answer)}

{card.tokens.all} tokens in total, each row once. Replay data (the base's own answers): {replayed}.{warning}

Left out by the token budget: {card.beyond_budget} rows, which may train in a later run.

Duplicates: {card.duplicates.same_user} by one user quarantined, {card.duplicates.between_users} by several users train.

## Quarantined: {sum(card.held.values())}

| reason | signals |
| --- | --- |
{chr(10).join(f"| {reason} | {count} |" for reason, count in card.held.items()) or "| none | 0 |"}
"""


def _compared(train: RowStats, heldout: RowStats) -> str:
    rows = [
        ("rows", train.rows, heldout.rows),
        ("users", train.users, heldout.users),
        ("kinds", _listed(train.kinds), _listed(heldout.kinds)),
        ("objectives", _listed(train.objectives), _listed(heldout.objectives)),
        ("truncated answers", train.unended, heldout.unended),
        ("imported", train.imported, heldout.imported),
        ("wordings of questions", train.questions, heldout.questions),
        ("questions by meaning", train.groups, heldout.groups),
        ("largest share of one user", f"{train.largest_user_share:.1%}", f"{heldout.largest_user_share:.1%}"),
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _lengths(name: str, found: Quantiles) -> str:
    return f"| {name} | {found.p10} | {found.p50} | {found.p90} | {found.p99} | {found.longest} |"


def _listed(counts: dict[str, int], between: str = " ") -> str:
    """Return counts as text, such as `correction 3, thumbs 2` or `0: 7, 1: 5`."""
    return ", ".join(f"{name}{between}{count}" for name, count in counts.items()) or "none"
